"""What the page's script needs, as JSON that may stand inside HTML: figures of points, no sample's text."""

import json
from collections.abc import Sequence
from typing import Any

from kvfoot.core.records import RunRecord
from kvfoot.core.results import SampleResult
from kvfoot.report.points import Panel, Point, option, series, setting
from kvfoot.report.table import size

BINS = 5
"""Parts of the prompt in which a needle's depth is counted."""
PASSES = 240
"""Passes of a timeline that are drawn; longer ones are thinned."""


def payload(found: Sequence[Panel]) -> dict[str, Any]:
    """Panels, series and points; records that are equal but for figures and seed are stored once."""
    names = series(found)
    records: dict[str, int] = {}
    points: dict[int, dict[str, Any]] = {}
    for panel in found:
        index = _common_sample(panel)
        for curve in panel.curves:
            for point in curve.points:
                points[point.number] = {
                    "panel": panel.number,
                    "series": names.index(curve.label),
                    "setting": setting(point.cell),
                    "rows": _rows(point),
                    "record": records.setdefault(json.dumps(_record(point)), len(records)),
                    "kept": [[_short(x) for x in layer] for layer in point.kept],
                    "line": _line(point, index),
                    "depth": _depths(point),
                }
    return {
        "series": names,
        "full": [n for n in names if any(c.is_full and c.label == n for p in found for c in p.curves)],
        "panels": [{"heading": p.heading, "subject": p.subject, "length": p.length} for p in found],
        "records": [json.loads(text) for text in records],
        "points": points,
        "bins": BINS,
    }


def embed(value: Any) -> str:
    """JSON in which no character can end or open a tag: for a script element of type application/json."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _short(value: float) -> float:
    return round(value, 3)


def _rows(point: Point) -> list[tuple[str, str]]:
    """A point's figures as they are shown beside it."""
    foot, memory = point.footprint, [r.memory for r in point.records]
    ends = point.interval
    held, peak, dense = (
        size(sum(getattr(m, name) for m in memory) / point.n) for name in ("held_bytes", "peak_bytes", "dense_bytes")
    )
    rows = [
        ("score", f"{point.score:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "") + f", n = {point.n}"),
        ("footprint", f"{foot.kv:.3f}, peak {foot.peak:.3f}, read {foot.read:.3f}, bytes {foot.bytes:.3f}"),
        ("memory", f"held {held}, peak {peak}, dense {dense}"),
    ]
    if point.nll is not None:
        rows.append(("NLL", f"{point.nll:.3f} nats a token"))
    speeds = [
        f"{speed:,.0f} {what} tokens/s"
        for speed, what in ((point.prefill, "prompt"), (point.decode, "decoded"))
        if speed is not None
    ]
    if speeds:
        rows.append(("speed", ", ".join(speeds)))
    stepped = sum(s.stepped for s in point.samples)
    how = "token by token" if stepped == point.n else "in one pass" if not stepped else f"{stepped} token by token"
    rows.append(("answered", how))
    seeds = sorted({s.cell.seed for s in point.samples})
    drawn = sorted({r.seed for r in point.records})
    rows.append(("seed", f"of the samples {_span(seeds)}, of the runs {_span(drawn)}"))
    return rows


def _span(numbers: Sequence[int]) -> str:
    if len(numbers) <= 3:
        return ", ".join(map(str, numbers))
    return f"{numbers[0]} to {numbers[-1]} ({len(numbers)})"


def _record(point: Point) -> list[tuple[str, str]]:
    record: RunRecord = point.samples[0].record
    config = ", ".join(option(name, value) for name, value in record.config.items() if value not in (None, {}, []))
    return [
        ("config", config),
        ("revision", record.revision),
        ("device", ", ".join(str(v) if k != "threads" else f"{v} threads" for k, v in record.device.items())),
        ("packages", ", ".join(f"{name} {version}" for name, version in record.packages.items())),
    ]


def _common_sample(panel: Panel) -> tuple[int, int] | None:
    """The first sample with a timeline that every point has answered."""
    shared: set[tuple[int, int]] | None = None
    for point in (p for c in panel.curves for p in c.points):
        has = {(s.cell.seed, s.index) for s in point.samples if s.timeline}
        shared = has if shared is None else shared & has
    return min(shared) if shared else None


def _line(point: Point, which: tuple[int, int] | None) -> dict[str, Any] | None:
    """A sample's timeline as two lists, tokens seen and entries stored, and where its prompt ends."""
    sample: SampleResult | None = next((s for s in point.samples if (s.cell.seed, s.index) == which), None)
    if sample is None or which is None:
        return None
    record, steps = sample.record, sample.timeline
    prompt = round(record.tokens["prompt"] / max(1, len(record.sequences)))
    every = -(-len(steps) // PASSES)
    thin = [s for i, s in enumerate(steps) if i % every == 0 or i == len(steps) - 1 or s[0] == prompt]
    rows = sum(len(layer) for layer in record.sequences[0].kept) if record.sequences else 0
    return {
        "sample": sample.index,
        "prompt": prompt,
        "rows": rows,
        "seen": [n for n, _ in thin],
        "stored": [n for _, n in thin],
    }


def _depths(point: Point) -> list[tuple[int, float]] | None:
    """Samples and their mean score in each of BINS equal parts of the depth; None for a task without depths."""
    found: list[list[float]] = [[] for _ in range(BINS)]
    for sample in point.samples:
        depth = sample.figures.get("depth")
        if isinstance(depth, int | float) and 0 <= depth <= 1:
            found[min(BINS - 1, int(depth * BINS))].append(sample.score)
    if not any(found):
        return None
    return [(len(scores), _short(sum(scores) / len(scores)) if scores else 0.0) for scores in found]
