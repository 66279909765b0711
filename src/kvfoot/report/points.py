"""Scored samples folded into what is drawn: a point per cell, a curve per method, a panel per task and length."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from kvfoot.core.records import Footprint, RunRecord, mean
from kvfoot.core.results import Cell, SampleResult
from kvfoot.report.interval import interval

LOWER = frozenset({"perplexity", "nll", "kl"})
"""Metrics of which less is better: no share of full attention's score is drawn for them."""

POINT = frozenset({"model", "revision", "task", "category", "metric", "length", "value", "seed"})
"""Fields of a cell that do not make a curve: its panel's, its point's place on the curve, its seed."""


@dataclass(frozen=True)
class Point:
    """The samples of one cell (all its seeds). number: the point's place in the page."""

    number: int
    cell: Cell
    samples: tuple[SampleResult, ...]

    @property
    def n(self) -> int:
        return len(self.samples)

    @cached_property
    def score(self) -> float:
        return sum(s.score for s in self.samples) / self.n

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        return interval([s.score for s in self.samples])

    @cached_property
    def footprint(self) -> Footprint:
        return mean([s.record.footprint for s in self.samples])

    @cached_property
    def nll(self) -> float | None:
        known = [s.nll for s in self.samples if s.nll is not None]
        return sum(known) / len(known) if known else None

    @cached_property
    def decode(self) -> float | None:
        """Tokens per second while decoding, all sequences of a batch together; None where nothing was stepped."""
        times = [(r.timings.decode_ms_per_token, max(1, len(r.sequences))) for r in self.records]
        known = [(ms, batch) for ms, batch in times if ms]
        return 1000 * sum(b for _, b in known) / sum(ms for ms, _ in known) if known else None

    @cached_property
    def prefill(self) -> float | None:
        """Prompt tokens per second."""
        time = sum(r.timings.prefill_s for r in self.records)
        return sum(r.tokens["prompt"] for r in self.records) / time if time else None

    @property
    def records(self) -> list[RunRecord]:
        return [s.record for s in self.samples]

    @cached_property
    def kept(self) -> list[list[float]]:
        """Share of the prompt's entries kept per layer and KV head, mean over samples; [] if no record says."""
        parts = [
            [[n * len(r.sequences) / r.tokens["prompt"] for n in layer] for layer in r.kept]
            for r in self.records
            if r.sequences and r.tokens["prompt"]
        ]
        return [[sum(x) / len(x) for x in zip(*layers, strict=True)] for layers in zip(*parts, strict=True)]


@dataclass(frozen=True)
class Curve:
    """One method with its options over one knob. label: the same for the same method in every panel."""

    label: str
    points: tuple[Point, ...]
    """By footprint, largest first."""

    @property
    def is_full(self) -> bool:
        return self.points[0].cell.is_full


@dataclass(frozen=True)
class Panel:
    """One task at one length under one model. whose: the model's short name where a report has several, else empty."""

    number: int
    model: str
    revision: str
    task: str
    category: str
    metric: str
    length: int
    curves: tuple[Curve, ...]
    whose: str = ""

    @property
    def subject(self) -> str:
        """The task, and whose."""
        return ", ".join(filter(None, (self.task, self.whose)))

    @property
    def heading(self) -> str:
        """Task, length (0: its samples have lengths of their own), and whose."""
        tokens = f"{self.length:,} tokens" if self.length else ""
        return ", ".join(filter(None, (self.task, tokens, self.whose)))

    @property
    def full(self) -> Point | None:
        return next((c.points[0] for c in self.curves if c.is_full), None)

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.metric in LOWER

    def threshold(self, fraction: float) -> float | None:
        """The score that is `fraction` of full attention's."""
        full = self.full
        return None if full is None or self.lower or full.score <= 0 else fraction * full.score


def panels(results: Iterable[SampleResult]) -> list[Panel]:
    """All panels in the order in which their tasks first come, shorter lengths first."""
    cells: dict[str, list[SampleResult]] = defaultdict(list)
    keys: dict[int, str] = {}  # by object: samples of a cell mostly share one, and a key is slow to write
    for result in results:
        key = keys.get(id(result.cell))
        if key is None:
            key = keys[id(result.cell)] = replace(result.cell, seed=0).key
        cells[key].append(result)
    points = [
        Point(i, found[0].cell, tuple(sorted(found, key=lambda s: (s.cell.seed, s.index))))
        for i, found in enumerate(cells.values())
    ]
    named = labels([p.cell for p in points])
    grouped: dict[tuple[Any, ...], dict[str, list[Point]]] = {}
    for point, name in zip(points, named, strict=True):
        c = point.cell
        place = (c.model, c.revision, c.task, c.category, c.metric, c.length)
        grouped.setdefault(place, {}).setdefault(name, []).append(point)
    first = {place[:3]: i for i, place in reversed(list(enumerate(grouped)))}
    ordered = sorted(grouped, key=lambda place: (first[place[:3]], place[5]))
    names = _models({place[:2] for place in grouped})
    made: list[Panel] = []
    for model, revision, task, category, metric, length in ordered:
        curves = _curves(grouped[model, revision, task, category, metric, length])
        whose = names[model, revision]
        made.append(Panel(len(made), model, revision, task, category, metric, length, curves, whose))
    return made


def _models(kinds: set[tuple[Any, ...]]) -> dict[tuple[Any, ...], str]:
    """(model, revision) -> the end of its path, with its revision where that does not tell it apart."""
    if len(kinds) == 1:
        return dict.fromkeys(kinds, "")
    ends = {kind: kind[0].rstrip("/").rsplit("/", 1)[-1] for kind in kinds}
    return {k: end if list(ends.values()).count(end) == 1 else f"{end} {k[1][:8]}" for k, end in ends.items()}


def _curves(named: dict[str, list[Point]]) -> tuple[Curve, ...]:
    made = [Curve(name, tuple(sorted(points, key=lambda p: -p.footprint.kv))) for name, points in sorted(named.items())]
    return tuple(sorted(made, key=lambda c: not c.is_full))


def labels(cells: Sequence[Cell]) -> list[str]:
    """A name per cell, without the value of its knob: the method, and of the rest what tells its cells apart.

    In the order and spelling of `kvfoot critical`: snapkv chunk window=64 by budget.
    """
    parts = [_parts(c) for c in cells]
    known: dict[str, set[str]] = defaultdict(set)
    for cell, part in zip(cells, parts, strict=True):
        known[cell.method].update(part)
    kinds: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell, part in zip(cells, parts, strict=True):
        for name in known[cell.method]:
            kinds[cell.method, name].add(part.get(name, ""))
    return [
        " ".join([c.method, *(text for name, text in part.items() if text and len(kinds[c.method, name]) > 1)])
        for c, part in zip(cells, parts, strict=True)
    ]


def _parts(cell: Cell) -> dict[str, str]:
    """What, besides the knob's value, makes the cells of one method different curves."""
    known = {f.name for f in fields(cell)} - POINT - {"options", "knob", "evict", "method"}
    return (
        {"evict": cell.evict or ""}
        | {f"option {name}": f"{name}={value}" for name, value in sorted(cell.options.items()) if name != cell.knob}
        | {"knob": f"by {cell.knob}" if cell.knob else ""}
        | {name: f"{name}={getattr(cell, name)}" for name in sorted(known)}
    )


def option(name: str, value: Any) -> str:
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


def setting(cell: Cell) -> str:
    """The knob and its value: keep=0.5; empty for full attention."""
    return "" if cell.knob is None or cell.value is None else f"{cell.knob}={cell.value:g}"


def series(found: Sequence[Panel]) -> list[str]:
    """All labels, full attention first, then by name: the place of a label decides its colour and mark."""
    full = {c.label for p in found for c in p.curves if c.is_full}
    rest = {c.label for p in found for c in p.curves} - full
    return [*sorted(full), *sorted(rest)]
