"""The command that makes the samples of a report, put together from their cells."""

import shlex
from collections.abc import Iterable, Sequence

from kvfoot.core.results import Cell
from kvfoot.report.points import Panel


def commands(found: Sequence[Panel], out: str) -> list[str]:
    """One per model and seed; every option of a method is spelt out, defaults too."""
    kinds: dict[tuple[str, int], list[tuple[Cell, int]]] = {}
    for point in (p for panel in found for c in panel.curves for p in c.points):
        for seed in sorted({s.cell.seed for s in point.samples}):
            count = max(s.index for s in point.samples if s.cell.seed == seed) + 1
            kinds.setdefault((point.cell.model, seed), []).append((point.cell, count))
    return [
        _command([c for c, _ in cells], model, seed, max(n for _, n in cells), out)
        for (model, seed), cells in kinds.items()
    ]


def _command(cells: Sequence[Cell], model: str, seed: int, samples: int, out: str) -> str:
    knobs: dict[str, list[float]] = {}
    for c in cells:
        if c.knob is not None and c.value is not None and c.value not in (known := knobs.setdefault(c.knob, [])):
            known.append(c.value)
    words = ["kvfoot", "eval", "--model", model, "--tasks", _list(c.task for c in cells)]
    words += _option("--lengths", (str(c.length) for c in cells if c.length))
    words += ["--methods", _list(_method(c) for c in cells)]
    for knob, values in knobs.items():
        words += ["--knob", f"{knob}={','.join(f'{v:g}' for v in sorted(values, reverse=True))}"]
    words += _option("--evict", (c.evict for c in cells if c.evict))
    words += _option("--chunk", (str(c.chunk or "all") for c in cells))
    words += ["--samples", str(samples), "--seed", str(seed), "--out", out]
    return shlex.join(words)


def _method(cell: Cell) -> str:
    given = [f"{name}={value}" for name, value in cell.options.items() if name != cell.knob and value is not None]
    return ":".join([cell.method, *given])


def _option(name: str, values: Iterable[str]) -> list[str]:
    text = _list(values)
    return [name, text] if text else []


def _list(values: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(values))
