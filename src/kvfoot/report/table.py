"""Run records as tables for a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvfoot.core.records import RunRecord


def size(count: int | float) -> str:
    """Bytes in binary units: 812 B, 19.9 MiB."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024 or unit == "GiB":
            return f"{count:.1f} {unit}" if count < 100 else f"{count:.0f} {unit}"
    raise AssertionError


def seconds(value: float) -> str:
    return f"{value:.2f} s"


def per_token(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def title(record: RunRecord) -> str:
    """The method and what it was asked to keep: 'snapkv keep=0.25 post'."""
    config = record.config
    limit = [f"{name}={config[name]:g}" for name in ("keep", "budget") if config.get(name) is not None]
    return " ".join([str(config["method"]), *limit, *([str(config["evict"])] if limit else [])])


def summary(record: RunRecord) -> RenderableType:
    """What one run cost."""
    footprint, memory, timings = record.footprint, record.memory, record.timings
    config = record.config
    sequences = f" in {len(record.sequences)} sequences" if len(record.sequences) > 1 else ""
    grid = Table.grid(padding=(0, 2))
    rows = {
        "KV footprint": [
            f"{footprint.kv:.3f}",
            f"peak {footprint.peak:.3f}",
            f"read {footprint.read:.3f}",
            f"bytes {footprint.bytes:.3f}",
        ],
        "memory": [
            f"held {size(memory.held_bytes)}",
            f"peak {size(memory.peak_bytes)}",
            f"dense {size(memory.dense_bytes)}",
        ],
        "host memory": [f"held {size(memory.host_held_bytes)}", f"peak {size(memory.host_peak_bytes)}"],
        "beside it": [size(memory.side_bytes)],
        "time": [
            f"prefill {seconds(timings.prefill_s)}",
            f"first token {seconds(timings.ttft_s)}",
            f"per token {per_token(timings.decode_ms_per_token)}",
        ],
        "tokens": [f"prompt {record.tokens['prompt']:,}", f"generated {record.tokens['generated']:,}{sequences}"],
    }
    for name, count in (("host memory", memory.host_peak_bytes), ("beside it", memory.side_bytes)):
        if not count:
            del rows[name]
    for name, cells in rows.items():
        grid.add_row(Text(name, "bold"), *cells)
    how = f"{title(record)}, {config['model']}, {config['dtype']} on {record.device['type']}"
    return Group(Text(how + (", interrupted" if record.interrupted else ""), "bold"), grid)


def comparison(records: Sequence[RunRecord], verdicts: Sequence[str] = ()) -> Table:
    """Runs of one prompt, a row each. verdicts: a word for each row's answer."""
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("method")
    for name in (
        "KV foot-\nprint",
        "peak",
        "bytes held\nafter prefill",
        "bytes of\ndense cache",
        "prefill",
        "per token",
    ):
        table.add_column(name, justify="right")
    if verdicts:
        table.add_column("answer")
    for i, record in enumerate(records):
        cells = [
            f"{record.footprint.kv:.3f}",
            f"{record.footprint.peak:.3f}",
            size(record.memory.held_bytes),
            size(record.memory.dense_bytes),
            seconds(record.timings.prefill_s),
            per_token(record.timings.decode_ms_per_token),
        ]
        table.add_row(title(record), *cells, *(verdicts[i : i + 1]))
    return table
