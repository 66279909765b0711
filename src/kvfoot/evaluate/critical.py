"""The critical KV footprint: the smallest at which a method keeps a share of full attention's score.

arXiv 2506.17121, section 3 and table 2: per task category, by linear interpolation on the measured curve. Numbers only:
nothing here loads a model.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvfoot.core.budget import split
from kvfoot.core.errors import UsageError
from kvfoot.core.results import Cell, SampleResult

Rule = Literal["last", "first"]
Point = tuple[float, float]
"""(footprint, score)"""
Dataset = tuple[str, int]
"""(task, length)"""
FRACTION = 0.9
ROUNDS = 1000
FULL = "full"


@dataclass(frozen=True)
class Crossing:
    """A footprint in [0, 1]; bound "<": every measured point passes, ">": none does, "": it lies between two."""

    footprint: float
    bound: Literal["", "<", ">"] = ""

    def __str__(self) -> str:
        return f"{self.bound and self.bound + ' '}{100 * self.footprint:.1f} %"


@dataclass(frozen=True)
class Critical:
    """One method in one category. points: the measured curve, full attention's (1, baseline) first.

    low, high: 95 % bootstrap interval of `last`, over samples. floor: the footprint below which no budget goes with
    this chunk size, were nothing kept after a chunk (or after the prompt, for a method that evicts there).
    samples: of all datasets of the category together.
    """

    category: str
    method: str
    baseline: float
    last: Crossing
    first: Crossing
    low: Crossing
    high: Crossing
    floor: float
    points: tuple[Point, ...]
    samples: int


def crossing(points: Sequence[Point], threshold: float, rule: Rule = "last") -> Crossing:
    """Where the curve falls below `threshold`. points: in any order, full attention not among them.

    `last` takes the crossing at the lowest footprint, ignoring earlier dips, as the paper's table does; `first` the one
    at the highest: no point above it fails.
    """
    curve = sorted(points, key=lambda point: -point[0])
    passes = [score >= threshold for _, score in curve]
    if rule == "last":
        k = max((i for i, ok in enumerate(passes) if ok), default=-1)
    else:
        k = next((i for i, ok in enumerate(passes) if not ok), len(passes)) - 1
    if k < 0:
        return Crossing(curve[0][0], ">")
    if k == len(curve) - 1:
        return Crossing(curve[-1][0], "<")
    (fa, ya), (fb, yb) = curve[k], curve[k + 1]
    return Crossing(fa - (ya - threshold) / (ya - yb) * (fa - fb))


def floor_of(prompt: int, generated: int, chunk: int | None, evict: str | None) -> float:
    """Footprint of a method that keeps nothing: what its chunks, and the answer, see of themselves alone."""
    passes = [b - a for a, b in split(prompt, None if evict == "post" else chunk, 0)]
    passes.append(max(generated - 1, 0))
    whole = sum(passes)
    return sum(n * (n + 1) for n in passes) / (whole * (whole + 1))


def critical(
    results: Sequence[SampleResult], fraction: float = FRACTION, *, rounds: int = ROUNDS, seed: int = 0
) -> list[Critical]:
    """Per category and method, sorted. Raises UsageError where runs cannot be compared, saying which."""
    if not 0 < fraction <= 1:
        raise UsageError(f"--fraction {fraction:g} is outside (0, 1]")
    if not results:
        raise UsageError("no results: run kvfoot eval first")
    comparable(results)
    names = titles([r.cell for r in results])
    found = []
    for category in sorted({r.cell.category for r in results}):
        found += _category([r for r in results if r.cell.category == category], names, fraction, rounds, seed)
    return found


def comparable(results: Sequence[SampleResult]) -> None:
    """Raises UsageError for other models, chunk sizes, seeds, places of the question, or sample sets."""
    kinds: list[tuple[str, str, Callable[[Cell], str]]] = [
        ("models", "--model", lambda c: f"{c.model} ({c.revision[:8] or 'no revision'}, {c.dtype or 'no dtype'})"),
        ("chunk sizes", "--chunk", lambda c: "all" if c.chunk is None else str(c.chunk)),
        ("seeds", "--seed", lambda c: str(c.seed)),
        ("places of the question", "--question", lambda c: c.question),
    ]
    for name, option, of in kinds:
        values = sorted({of(r.cell) for r in results})
        if len(values) > 1:
            raise UsageError(f"different {name} cannot be compared: {', '.join(values)}: choose one with {option}")
    sets: dict[Dataset, dict[str, set[int]]] = {}
    for r in results:
        sets.setdefault((r.cell.task, r.cell.length), {}).setdefault(_point(r.cell), set()).add(r.index)
    for (task, length), found in sets.items():
        most = max(found, key=lambda name: len(found[name]))
        for name, indices in found.items():
            if indices != found[most]:
                raise UsageError(
                    f"different sample sets cannot be compared: {task} at {length} has {len(found[most])} samples of "
                    f"{most} and {len(indices)} of {name}: finish the sweep, or take the common ones with --samples"
                )


def titles(cells: Sequence[Cell]) -> dict[str, str]:
    """Curve -> the method's name, with what tells it from other curves of that name."""
    curves = {_curve(cell): cell for cell in cells}
    found = {}
    for curve, cell in curves.items():
        others = [c for c in curves.values() if c.method == cell.method]
        options = [f"{k}={v}" for k, v in _fixed(cell).items() if any(_fixed(o).get(k) != v for o in others)]
        when = [cell.evict] if len({o.evict for o in others}) > 1 and cell.evict else []
        knob = [f"by {cell.knob}"] if len({o.knob for o in others}) > 1 and cell.knob else []
        found[curve] = " ".join([cell.method, *when, *options, *knob])
    return found


def _fixed(cell: Cell) -> dict[str, object]:
    return {k: v for k, v in cell.options.items() if k != cell.knob}


def _curve(cell: Cell) -> str:
    """What all points of one curve have in common."""
    return FULL if cell.is_full else json.dumps([cell.method, cell.evict, cell.knob, _fixed(cell)], sort_keys=True)


def _point(cell: Cell) -> str:
    when = "" if cell.evict is None else f" {cell.evict}"
    return cell.method + when + ("" if cell.knob is None else f" {cell.knob}={cell.value:g}")


class _Curve:
    """Tables [points, samples, (footprint, score)] per dataset."""

    def __init__(self, results: Sequence[SampleResult]):
        self.values = sorted({r.cell.value for r in results}, key=lambda v: (v is not None, v))
        self.tables: dict[Dataset, np.ndarray] = {}
        for dataset in sorted({(r.cell.task, r.cell.length) for r in results}):
            own = [r for r in results if (r.cell.task, r.cell.length) == dataset]
            order = sorted({r.index for r in own})
            table = np.full((len(self.values), len(order), 2), np.nan)
            for r in own:
                at = self.values.index(r.cell.value), order.index(r.index)
                table[at] = r.record.footprint.kv, r.score
            self.tables[dataset] = table

    def means(self, datasets: Sequence[Dataset], draws: dict[Dataset, np.ndarray] | None = None) -> np.ndarray:
        """Means over samples, then over datasets: [points, 2], or [points, rounds, 2] of resampled ones."""
        tables = [self.tables[d] for d in datasets]
        if draws is None:
            return np.mean([t.mean(1) for t in tables], 0)
        return np.mean([t[:, draws[d]].mean(2) for d, t in zip(datasets, tables, strict=True)], 0)


def _category(
    results: Sequence[SampleResult], names: dict[str, str], fraction: float, rounds: int, seed: int
) -> list[Critical]:
    category = results[0].cell.category
    curves: dict[str, list[SampleResult]] = {}
    for r in results:
        curves.setdefault(_curve(r.cell), []).append(r)
    datasets = sorted({(r.cell.task, r.cell.length) for r in results})
    made = {curve: _Curve(own) for curve, own in curves.items()}
    for curve, one in made.items():
        gaps = [d for d in datasets if d not in one.tables or np.isnan(one.tables[d]).any()]
        if gaps:
            raise UsageError(
                f"different sample sets cannot be compared: {names[curve]} was not run, at every value of its knob, on "
                f"{gaps[0][0]} at {gaps[0][1]}"
            )
    if FULL not in made:
        raise UsageError(f"{category}: no full attention to compare with: add full to --methods")
    rng = np.random.default_rng(seed)
    sizes = {d: made[FULL].tables[d].shape[1] for d in datasets}
    draws = {d: rng.integers(0, n, (rounds, n)) for d, n in sizes.items()}  # the same for all methods: paired
    baseline = float(made[FULL].means(datasets)[0, 1])
    bases = made[FULL].means(datasets, draws)[0, :, 1]
    found = []
    for curve in sorted(set(made) - {FULL}, key=lambda c: names[c]):
        points = [(float(f), float(y)) for f, y in made[curve].means(datasets)]
        again = made[curve].means(datasets, draws)
        drawn = sorted(
            (crossing([(f, y) for f, y in again[:, i]], fraction * bases[i]) for i in range(rounds)),
            key=lambda c: (c.footprint, c.bound == ">"),
        )
        floors = [
            floor_of(r.record.tokens["prompt"], r.record.tokens["generated"], r.cell.chunk, r.cell.evict)
            for r in curves[curve]
        ]
        found.append(
            Critical(
                category=category,
                method=names[curve],
                baseline=baseline,
                last=crossing(points, fraction * baseline, "last"),
                first=crossing(points, fraction * baseline, "first"),
                low=drawn[int(0.025 * rounds)],
                high=drawn[min(int(0.975 * rounds), rounds - 1)],
                floor=float(np.mean(floors)),
                points=((1.0, baseline), *sorted(points, reverse=True)),
                samples=sum(sizes.values()),
            )
        )
    return found
