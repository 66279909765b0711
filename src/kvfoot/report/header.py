"""What was run, in words, and what a reader has to know before comparing: from the records alone."""

from collections.abc import Iterable, Sequence
from typing import Any

from kvfoot.core.results import Cell
from kvfoot.report.points import Panel, Point, setting


def facts(found: Sequence[Panel]) -> list[tuple[str, str]]:
    """Name and text of every line of the header; a line without content is left out."""
    points = [p for panel in found for c in panel.curves for p in c.points]
    records = [p.samples[0].record for p in points]
    total = sum(p.n for p in points)
    lines = [
        ("model", _list(f"{p.model} (revision {p.revision[:12]})" for p in found)),
        ("methods", _list(c.label for p in found for c in p.curves)),
        ("settings", _list(sorted({setting(p.cell) for p in points} - {""}, key=_order))),
        ("tasks", _list(f"{p.task} ({p.category}, {p.metric})" for p in found)),
        ("lengths", _list(f"{n:,} tokens" if n else "the samples' own" for n in sorted({p.length for p in found}))),
        ("samples", f"{_span([p.n for p in points])} a point, {total:,} in all; seed {_seeds(points)}"),
        ("chunk", _list(_chunk(p.cell) for p in points)),
        ("computed in", _list(_how(r.config) for r in records)),
        ("device", _list(device(r.device) for r in records)),
        ("versions", _list(versions(r.packages) for r in records)),
    ]  # fmt: skip
    return [(name, text) for name, text in lines if text]


def warnings(found: Sequence[Panel]) -> list[str]:
    """What makes figures of one page incomparable."""
    said = []
    points = [p for panel in found for c in panel.curves for p in c.points]
    for panel in found:
        where = panel.heading
        baselines = [c.label for c in panel.curves if c.is_full]
        if len(baselines) > 1:
            said.append(f"{where}: {', '.join(baselines)} are compared with the first of them only.")
        if panel.full is None:
            said.append(f"{where} has no full attention: no baseline, no line, no side-by-side answers.")
            continue
        few = sorted({c.label for c in panel.curves for p in c.points if _keys(p) != _keys(panel.full)})
        if few:
            said.append(f"{where}: {', '.join(few)} did not answer the same samples as full attention.")
    for name, kinds in (
        ("devices", {device(r.device) for p in points for r in p.records}),
        ("sets of versions", {versions(r.packages) for p in points for r in p.records}),
        ("precisions or backends", {_how(r.config) for p in points for r in p.records}),
    ):
        if len(kinds) > 1:
            said.append(f"The records name {len(kinds)} {name}: times compare only within one.")
    stopped = sum(r.interrupted for p in points for r in p.records)
    if stopped:
        said.append(f"{stopped} samples come from runs that were interrupted.")
    return said


def device(of: dict[str, Any]) -> str:
    threads = f", {of['threads']} threads" if "threads" in of else ""
    return f"{of.get('name') or of.get('type', '')} ({of.get('type', '')}{threads})"


def versions(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _chunk(cell: Cell) -> str:
    return f"{cell.chunk} prompt tokens a pass" if cell.chunk else "the prompt in one pass"


def _how(config: dict[str, Any]) -> str:
    return ", ".join(str(config[name]) for name in ("dtype", "backend") if config.get(name))


def _keys(point: Point) -> set[tuple[int, int]]:
    return {(s.cell.seed, s.index) for s in point.samples}


def _order(text: str) -> tuple[str, float]:
    name, value = text.split("=")
    return name, -float(value)


def _seeds(points: Sequence[Point]) -> str:
    return _list(str(n) for n in sorted({s.cell.seed for p in points for s in p.samples}))


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"


def _list(words: Iterable[str]) -> str:
    """Each once, in order."""
    return ", ".join(dict.fromkeys(w for w in words if w))
