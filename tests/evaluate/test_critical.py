"""The critical footprint against the published check values, its bounds, its interval, and what it refuses."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvfoot.core.errors import UsageError
from kvfoot.core.records import Footprint, Memory, RunRecord, Timings
from kvfoot.core.results import Cell, SampleResult
from kvfoot.evaluate.critical import Crossing, critical, crossing, floor_of

CELL = Cell("m", "abc", "keys", "recall", "exact", 1024, "full", chunk=512, dtype="float32")


def record(kv: float) -> RunRecord:
    tokens = {"prompt": 1000, "generated": 11}
    return RunRecord(Footprint(kv, kv, kv, kv), Memory(0, 0, 0), Timings(0, 0, None), tokens, {}, "", {}, {}, 0)


def sample(cell: Cell, index: int, kv: float, score: float) -> SampleResult:
    return SampleResult(cell, index, "p", "a", "r", score, None, False, record(kv))


def curve(points: dict[float, tuple[float, list[float]]], full: list[float], **cell: Any) -> list[SampleResult]:
    """value -> (footprint, a score per sample)."""
    base = replace(CELL, **{k: v for k, v in cell.items() if k in ("task", "length", "category", "chunk", "model")})
    found = [sample(base, i, 1.0, s) for i, s in enumerate(full)]
    for value, (kv, scores) in points.items():
        own = replace(base, **({"method": "snapkv", "knob": "keep", "evict": "post"} | cell | {"value": value}))
        found += [sample(own, i, kv, s) for i, s in enumerate(scores)]
    return found


@pytest.mark.parametrize(
    ("points", "threshold", "expected"),
    [
        ([(53.4, 92.7), (46.6, 87.6), (40.0, 60.0)], 85.7, 46.1),  # PruLong, Recall: about 46
        ([(51.6, 77.8), (44.5, 69.8)], 75.5, 49.6),  # DuoAttention, ICL: 49 in table 2
        ([(65.4, 27.6), (58.6, 23.0)], 23.4, 59.2),  # PruLong, Summarization: 59
    ],
)
def test_published_values(points: list[tuple[float, float]], threshold: float, expected: float) -> None:
    for order in (points, points[::-1]):
        found = crossing(order, threshold)
        assert found.bound == ""
        assert found.footprint == pytest.approx(expected, abs=0.06)
        assert crossing(order, threshold, "first") == found


def test_bounds() -> None:
    points = [(0.9, 0.8), (0.5, 0.7)]
    assert crossing(points, 0.95) == Crossing(0.9, ">")
    assert crossing(points, 0.7) == Crossing(0.5, "<")
    assert str(Crossing(0.5, "<")) == "< 50.0 %"
    assert str(crossing([(0.9, 0.8), (0.5, 0.4)], 0.6)) == "70.0 %"


def test_a_curve_that_dips() -> None:
    """PruLong on Re-rank dips below its threshold at 68.7 % and recovers at 62.4 %: table 2 has the later value."""
    points = [(0.75, 13.6), (0.687, 12.2), (0.624, 13.5), (0.561, 10.0)]
    last, first = (crossing(points, 12.6, rule) for rule in ("last", "first"))  # type: ignore[arg-type]
    assert last.footprint == pytest.approx(0.624 - 0.9 / 3.5 * 0.063)
    assert first.footprint == pytest.approx(0.75 - 1.0 / 1.4 * 0.063)
    assert crossing([(0.9, 1.0), (0.5, 2.0)], 1.5, "first") == Crossing(0.9, ">")
    assert crossing([(0.9, 1.0), (0.5, 2.0)], 1.5, "last") == Crossing(0.5, "<")


def test_means_are_over_samples_then_datasets() -> None:
    """Ten samples of one task weigh as much as two of the other."""
    results = curve({0.5: (0.6, [1.0, 1.0]), 0.1: (0.2, [0.0, 0.0])}, [1.0, 1.0])
    results += curve({0.5: (0.8, [0.8] * 10), 0.1: (0.4, [0.4] * 10)}, [1.0] * 10, task="other")
    (found,) = critical(results, 0.8)
    for point, expected in zip(found.points, ((1.0, 1.0), (0.7, 0.9), (0.3, 0.2)), strict=True):
        assert point == pytest.approx(expected)
    assert found.last.footprint == pytest.approx(0.7 - 0.1 / 0.7 * 0.4)
    assert (found.samples, found.baseline, found.method) == (12, 1.0, "snapkv")


def test_the_interval_is_of_samples_and_seeded() -> None:
    rng = np.random.default_rng(5)
    full = [1.0] * 60
    points = {value: (value, [float(x) for x in rng.random(60) < value]) for value in (0.98, 0.9, 0.8, 0.7, 0.5)}
    results = curve(points, full)
    (a,), (b,), (c,) = critical(results), critical(results), critical(results, seed=1)
    assert a == b
    assert a.low != c.low or a.high != c.high
    assert a.low.footprint < a.last.footprint < a.high.footprint
    # binomial at 0.9 with n = 60: sd 0.039 of the score; the curve's slope is about 1
    assert 0.02 < a.high.footprint - a.low.footprint < 0.3
    same = critical(curve({0.5: (0.5, [1.0] * 8), 0.1: (0.1, [0.0] * 8)}, [1.0] * 8))[0]
    assert same.low == same.high == same.last == Crossing(pytest.approx(0.46))  # type: ignore[arg-type]


def test_the_interval_is_paired() -> None:
    """Full attention fails the same samples: their ratio does not vary, though both scores do."""
    hard = [0.0, 1.0] * 10
    (found,) = critical(curve({0.5: (0.5, hard), 0.1: (0.1, [0.0] * 20)}, hard))
    assert found.low.footprint == pytest.approx(found.high.footprint)


def test_floor() -> None:
    # two chunks of 512 and 488 and ten decode steps, nothing kept: triangles over the whole triangle
    pairs = 512 * 513 + 488 * 489 + 10 * 11
    assert floor_of(1000, 11, 512, "chunk") == pairs / (1010 * 1011)
    assert floor_of(1000, 11, 512, "post") == (1000 * 1001 + 10 * 11) / (1010 * 1011)
    assert floor_of(1000, 1, None, "chunk") == 1.0
    assert math.isclose(critical(curve({0.5: (0.9, [1.0])}, [1.0], evict="chunk"))[0].floor, pairs / (1010 * 1011))


def test_titles_tell_variants_apart() -> None:
    results = curve({0.5: (0.5, [1.0])}, [1.0])
    for cell in ({"evict": "chunk"}, {"evict": "chunk", "options": {"patch": True}}):
        results += curve({0.5: (0.5, [1.0])}, [], **cell)  # type: ignore[arg-type]
    assert [f.method for f in critical(results)] == ["snapkv chunk", "snapkv chunk patch=True", "snapkv post"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"chunk": 256}, "chunk sizes.*256, 512.*--chunk"),
        ({"model": "n"}, r"models.*m \(abc, float32\), n \(abc, float32\).*--model"),
        ({"seed": 3}, "seeds.*0, 3"),
        ({"question": "after"}, "places of the question.*after, before"),
        ({"dtype": "bfloat16"}, "models.*bfloat16"),
    ],
)
def test_refuses_to_compare(change: dict[str, Any], word: str) -> None:
    results = curve({0.5: (0.5, [1.0])}, [1.0])
    other = [replace(r, cell=replace(r.cell, **change)) for r in results]
    with pytest.raises(UsageError, match=word):
        critical([*results, *other])


def test_refuses_other_sample_sets_and_gaps() -> None:
    results = curve({0.5: (0.5, [1.0, 1.0]), 0.3: (0.3, [1.0, 1.0])}, [1.0, 1.0])
    with pytest.raises(UsageError, match=r"sample sets.*keys at 1024 has 2 samples of .* and 1 of snapkv post keep"):
        critical(results[:-1])
    with pytest.raises(UsageError, match="no full attention"):
        critical([r for r in results if not r.cell.is_full])
    more = curve({0.5: (0.5, [1.0, 1.0])}, [1.0, 1.0], task="other")
    with pytest.raises(UsageError, match=r"snapkv was not run.*other at 1024"):
        critical([*results, *more])
    with pytest.raises(UsageError, match="fraction"):
        critical(results, 1.5)
