"""`kvfoot critical`: the smallest footprint at which each method keeps a share of full attention's score."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from kvfoot.core.errors import UsageError

if TYPE_CHECKING:
    from kvfoot.core.results import Cell


def critical(
    folder: Annotated[Path, Argument(metavar="DIR", help="what kvfoot eval wrote: the folder or its export")],
    fraction: Annotated[float, Option(help="share of full attention's score that is to be kept")] = 0.9,
    model: Annotated[str | None, Option(help="only this model's results")] = None,
    chunk: Annotated[str | None, Option(help="only this chunk size's; all for one pass")] = None,
    question: Annotated[str | None, Option(help="only those asked before, or after, the eviction")] = None,
    seed: Annotated[int | None, Option(help="only this seed's samples")] = None,
    samples: Annotated[int | None, Option(help="only the first so many samples of every cell")] = None,
    rounds: Annotated[int, Option(help="of the bootstrap")] = 1000,
    as_json: Annotated[bool, Option("--json", help="as JSON")] = False,
) -> int:
    """The critical KV footprint per task category and method, with a 95 % bootstrap interval over samples."""
    from kvfoot.cli import inputs
    from kvfoot.evaluate.critical import critical as critical_of
    from kvfoot.evaluate.export import read

    if rounds < 40:
        raise UsageError(f"--rounds {rounds}: give at least 40, for a 95 % interval")
    if samples is not None and samples < 1:
        raise UsageError(f"--samples {samples}: give at least 1")
    size = None if chunk is None else inputs.chunk_size(chunk)
    results = read(folder)
    filters: list[tuple[Any, Callable[[Cell], Any]]] = [
        (model, lambda c: c.model == model),
        (chunk, lambda c: c.chunk == size),
        (question, lambda c: c.question == question),
        (seed, lambda c: c.seed == seed),
    ]
    for given, keeps in filters:
        results = [r for r in results if given is None or keeps(r.cell)]
    results = [r for r in results if samples is None or r.index < samples]
    if not results:
        raise UsageError(f"{folder}: no results are left: look at --model, --chunk, --question, --seed and --samples")
    found = critical_of(results, fraction, rounds=rounds)
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(x) for x in found], indent=1))
        return 0
    _print(found, fraction)
    return 0


def _print(found: list[Any], fraction: float) -> None:
    from rich.table import Table

    from kvfoot.cli.console import stdout

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("category", "method", "full", f"critical at {fraction:.0%}", "95 % interval", "first", "floor", "n"):
        table.add_column(name, justify="left" if name in ("category", "method") else "right")
    for x in found:
        interval = str(x.low) if x.low == x.high else f"{x.low} to {x.high}"
        row = (f"{x.baseline:.3f}", str(x.last), interval, str(x.first), f"{100 * x.floor:.1f} %", str(x.samples))
        table.add_row(x.category, x.method, *row)
    console = stdout()
    console.print(table)
    console.print(
        "critical: lowest crossing, linear between points; first: the highest; floor: nothing kept after a chunk",
        style="dim",
        markup=False,
    )
