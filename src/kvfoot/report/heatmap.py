"""Gates in the terminal: a row per layer, a cell per KV head."""

from collections.abc import Sequence

from rich.text import Text

SHADES = " ░▒▓█"
FULL, STREAMING = "rgb(240,160,40)", "rgb(90,110,160)"


def heatmap(values: Sequence[Sequence[float]], full: Sequence[Sequence[bool]]) -> Text:
    """values [layers][kv_heads] in [0, 1], shaded in fifths; `full` heads in brackets, with their number per layer."""
    width = len(str(len(values) - 1))
    heads = len(values[0])
    text = Text(" " * (width + 1) + "".join(f"{head % 100:>3} " for head in range(heads)) + " full\n", style="dim")
    for layer, (row, roles) in enumerate(zip(values, full, strict=True)):
        text.append(f"{layer:>{width}} ", style="dim")
        for value, role in zip(row, roles, strict=True):
            shade = SHADES[min(int(value * len(SHADES)), len(SHADES) - 1)] * 2
            text.append(f"[{shade}]" if role else f" {shade} ", style=FULL if role else STREAMING)
        text.append(f" {sum(map(bool, roles)):>4}\n", style="dim")
    return text


def as_text(values: Sequence[Sequence[float]], full: Sequence[Sequence[bool]]) -> str:
    """The same without colours."""
    return heatmap(values, full).plain
