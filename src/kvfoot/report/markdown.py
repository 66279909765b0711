"""A sweep's report for a README: Markdown tables and links to the SVG files beside it."""

from collections.abc import Iterable, Mapping, Sequence

from kvfoot.report.cards import FIGURES, figure_rows
from kvfoot.report.contents import Report
from kvfoot.report.crossings import categories
from kvfoot.report.header import facts, warnings

CAPTIONS = {
    "score.svg": "Score against KV footprint; bars: 95 % intervals over samples; dotted: {fraction} of full attention",
    "peak.svg": "Peak against KV footprint; dotted: both the same",
    "speed.svg": "Score against speed; bars: 95 % intervals over samples",
}
PLAIN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {c: f"\\{c}" for c in "\\|`*_[]"})


def markdown(report: Report, pictures: Mapping[str, str]) -> str:
    """The document. pictures: the files of `figures`, by name, that are written into the same folder."""
    parts = [f"# {report.title}"]
    if report.commands:
        parts += ["The command that makes these samples, put together from them:", "\n".join(_code(report.commands))]
    parts.append(table(("what was run", ""), facts(report.panels)))
    parts += [f"> {plain(w)}" for w in (*report.notes, *warnings(report.panels))]
    for file in pictures:
        caption = CAPTIONS[file].format(fraction=f"{report.fraction:.0%}")
        parts.append(f"![{caption}]({file})")
    if report.critical:
        parts += ["## Critical KV footprint", _explained(report)]
        head = ("category", "method", "last", "95 %", "first", "floor", "full attention", "samples")
        rows = [
            (name, r.method, f"{r.last}", r.span, f"{r.first}", f"{r.floor:.3f}", f"{r.baseline:.3f}", f"{r.samples}")
            for name, members in categories(report.critical).items()
            for r in members
        ]
        parts.append(table(head, rows))
    parts += ["## All figures", table(FIGURES, figure_rows(report.panels))]
    return "\n\n".join(parts) + "\n"


def _code(lines: Sequence[str]) -> list[str]:
    """Indented code: there is no fence that a text could close."""
    return [f"    {' '.join(line.split())}" for line in lines]


def _explained(report: Report) -> str:
    return (
        f"The smallest footprint that keeps {report.fraction:.0%} of full attention's score, by linear interpolation: "
        "at the last crossing of the curve, and at the first. `<`: the sweep ends before the curve crosses; `>`: it "
        "never reaches the line. The floor is what the chunk size alone costs."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown and the HTML in it leave alone, on one line."""
    text = " ".join(text.split())
    return text.translate(PLAIN)
