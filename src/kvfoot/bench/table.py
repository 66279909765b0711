"""A benchmark's record as a table for a terminal."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvfoot.bench.record import BenchRecord
from kvfoot.bench.variant import TRANSFORMERS


def table(record: BenchRecord) -> RenderableType:
    """A line per side: measured, roofline, ratio, what was moved or computed, and the others as multiples of the first.

    The last column is how many times as long the side takes per token (of a prompt: in all) as the first one.
    """
    figures = record.figures
    sides: dict[str, dict[str, Any]] = figures["sides"]
    columns = _columns(record.bench)
    grid = Table(box=None, header_style="bold", padding=(0, 1))
    grid.add_column(record.bench, no_wrap=True)
    for name in (*columns, "/ first"):
        grid.add_column(name, justify="right")
    first = next(iter(sides.values()))["tokens_per_second"]
    for name, row in sides.items():
        cells = [_cell(row[key], scale, form) for key, scale, form in columns.values()]
        grid.add_row(name, *cells, f"{first / row['tokens_per_second']:.2f}")
    return Group(grid, Text(_below(record), style="dim"))


def _columns(bench: str) -> dict[str, tuple[str, float, str]]:
    """Heading -> (figure, what it is divided by, format)."""
    found = {"ms": ("ms", 1.0, ".3f"), "roofline": ("roofline_ms", 1.0, ".3f"), "ratio": ("ratio", 1.0, ".2f")}
    if bench == "prefill":
        return found | {
            "TFLOP": ("flops", 1e12, ".3g"),
            "cache, MB": ("peak_bytes", 1e6, ".1f"),
            "beside it, MB": ("above_bytes", 1e6, ".1f"),
        }
    more = {"K/V, MB": ("kv_bytes", 1e6, ".1f"), "tokens/s": ("tokens_per_second", 1.0, ".1f")}
    return found | more | ({"sequences": ("sequences", 1.0, ".0f")} if bench == "capacity" else {})


def _cell(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else format(value / scale, form)


def _below(record: BenchRecord) -> str:
    """What the numbers were made with."""
    figures, device = record.figures, record.device
    rate = (
        f"copy {figures['copy_bytes_per_second'] / 1e9:.1f} GB/s"
        if "copy_bytes_per_second" in figures
        else f"matrix product {figures['product_flops_per_second'] / 1e12:.2f} TFLOP/s"
    )
    said = [record.model_shape, record.dtype, record.backend, rate, str(device["name"])]
    if record.bench == "decode":
        weights = next(iter(figures["sides"].values()))["weights_bytes"]
        said.insert(3, f"weights streamed {weights / 1e6:.1f} MB")
        if not figures["interleaved"]:
            said.append("sides one after the other")
    if TRANSFORMERS in figures["sides"]:
        said.append(f"transformers {record.packages['transformers']}")
    return ", ".join(said)
