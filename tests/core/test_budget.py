"""A ratio becomes integers once, exactly; what does not fit is refused with the cure."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfoot.core.budget import Budget, Cut, split
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry

GEOMETRY = Geometry(layers=2, kv_heads=3, group=2, head_dim=8, positions=1 << 20)


def resolve(
    budget: Budget, prompt: int, chunk: int | None, floor: int = 0, observers: int = 0, total: bool = False
) -> Any:
    return budget.resolve(prompt, chunk, GEOMETRY, floor=floor, observers=observers, total=total)


def only(cut: Cut | None) -> int | None:
    """The one number of a cut that is the same for all rows."""
    if cut is None:
        return None
    assert cut.counts.shape == (2, 3)
    assert cut.counts.dtype == np.int32
    assert len(set(cut.counts.flat)) == 1
    return int(cut.counts[0, 0])


def nearest_even(x: Fraction) -> int:
    low = x.numerator // x.denominator
    if x - low == Fraction(1, 2):
        return low if low % 2 == 0 else low + 1
    return low if x - low < Fraction(1, 2) else low + 1


@pytest.mark.parametrize(
    ("given", "value"),
    [(0.3, "3/10"), ("0.3", "3/10"), (0.1, "1/10"), ("1/3", "1/3"), (1, "1"), (1.0, "1"), (1e-3, "1/1000")],
)
def test_a_ratio_is_the_decimal_that_was_written(given: Any, value: str) -> None:
    assert Budget.of(given).keep == Fraction(value)


def test_floats_would_round_otherwise() -> None:
    """0.145 x 100 is 14.499999999999998 in floating point, 0.285 x 100 is 28.499999999999996."""
    for ratio, n, kept in ((0.145, 100, 14), (0.285, 100, 28), (0.35, 10, 4), (0.45, 10, 4), (0.615, 200, 123)):
        passes, _ = resolve(Budget.of(ratio), n, None)
        assert only(passes[-1].cut) == kept == nearest_even(Fraction(str(ratio)) * n)


@pytest.mark.parametrize("keep", [0, -0.1, 1.0001, "0", "5", "-1/2"])
def test_keep_outside_its_range(keep: Any) -> None:
    with pytest.raises(UsageError, match=r"outside \(0, 1\]"):
        Budget.of(keep)


@pytest.mark.parametrize("keep", ["many", "nan", "inf", "1/0", "", "0.5x"])
def test_keep_that_is_no_number(keep: str) -> None:
    with pytest.raises(UsageError, match="is not a number: give a fraction"):
        Budget.of(keep)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(UsageError, match="keep and budget exclude each other"):
        Budget.of(0.5, 10)
    with pytest.raises(UsageError, match="budget=0: give at least 1"):
        Budget.of(budget=0)
    with pytest.raises(UsageError, match=r"evict='sometimes': 'post' .* or 'chunk'"):
        Budget.of(0.5, evict="sometimes")
    with pytest.raises(UsageError, match="chunk=0: give at least 1 token"):
        resolve(Budget.of(0.5), 10, 0)
    with pytest.raises(UsageError, match=r"budget=67 is below sinks \+ window = 68"):
        resolve(Budget.of(budget=67), 1000, 100, floor=68)
    with pytest.raises(UsageError, match=r"keep=0.1 of a chunk of 512 is 51 entries.* a chunk of at least 635"):
        resolve(Budget.of(0.1, evict="chunk"), 4096, 512, floor=64)


@pytest.mark.parametrize(("keep", "floor"), [("0.1", 64), ("0.3", 7), ("1/7", 5), ("0.5", 3), ("0.5", 4), ("1", 9)])
def test_the_chunk_that_an_error_names_is_the_smallest_that_works(keep: str, floor: int) -> None:
    least = next(n for n in range(1, 10_000) if nearest_even(Fraction(keep) * n) >= floor)
    budget = Budget.of(keep, evict="chunk")
    passes, _ = resolve(budget, 4 * least, least, floor=floor)
    assert len(passes) == 4
    if least > 1:
        with pytest.raises(UsageError, match=f"at least {least},"):
            resolve(budget, 4 * least, least - 1, floor=floor)


def test_a_hopeless_ratio_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="a chunk of at least 63500000000"):
        resolve(Budget.of(1e-9, evict="chunk"), 4096, 512, floor=64)


@given(
    prompt=st.integers(1, 400),
    chunk=st.none() | st.integers(1, 150),
    floor=st.integers(0, 12),
    percent=st.integers(1, 100),
    mode=st.sampled_from(["post", "chunk"]),
    total=st.booleans(),
    absolute=st.none() | st.integers(1, 200),
)
@settings(max_examples=400, deadline=None)
def test_any_plan_covers_the_prompt_and_counts_exactly(
    prompt: int, chunk: int | None, floor: int, percent: int, mode: str, total: bool, absolute: int | None
) -> None:
    ratio = Fraction(percent, 100)
    budget = Budget.of(None if absolute else ratio, absolute, mode)
    try:
        passes, later = resolve(budget, prompt, chunk, floor=floor, observers=floor, total=total)
    except UsageError:
        chunk_too_small = chunk is not None and nearest_even(ratio * chunk) < max(floor, 1)
        assert (absolute is not None and absolute < floor) or (mode == "chunk" and not total and chunk_too_small)
        return
    # The passes are [0, prompt) in order; all but the last are `chunk` long, the last at most twice that and a bit.
    assert [p.start for p in passes] == [0, *[p.stop for p in passes[:-1]]]
    assert passes[-1].stop == prompt
    assert all(p.stop - p.start == chunk for p in passes[:-1])
    if len(passes) > 1:
        assert passes[-1].stop - passes[-1].start >= floor
    held = np.zeros((2, 3), np.int64)
    for p in passes:
        n = p.stop - p.start
        held = held + n if p.cut is None else p.cut.kept(held, n)
        assert (held >= min(floor, p.stop)).all(), "sinks and window do not fit"
    if absolute is not None or total:
        count = absolute or max(nearest_even(ratio * prompt), floor, 1)
        assert only(later) == count
        assert (held == min(prompt, count)).all()
    else:
        assert later is None
        parts = [prompt] if mode == "post" else [p.stop - p.start for p in passes]
        expected = sum(min(n, max(nearest_even(ratio * n), floor, 1)) for n in parts)
        assert (held == expected).all()
    if mode == "post":
        assert all(p.cut is None for p in passes[:-1])


@pytest.mark.parametrize("method_total", [True, False])
@pytest.mark.parametrize("mode", ["post", "chunk"])
def test_a_prompt_shorter_than_sinks_and_window_is_kept_whole(mode: str, method_total: bool) -> None:
    for prompt in range(1, 9):
        passes, _ = resolve(Budget.of(0.25, evict=mode), prompt, None, floor=8, total=method_total)
        held = passes[0].cut.kept(np.zeros((2, 3), np.int64), prompt)
        assert (held == prompt).all()


@pytest.mark.parametrize("total", [True, False])
def test_a_share_is_never_nothing(total: bool) -> None:
    """An empty row under eviction has nothing to overwrite; a budget of 0 is refused as well."""
    passes, _ = resolve(Budget.of(0.01), 20, None, floor=0, total=total)
    assert only(passes[-1].cut) == 1


def test_a_short_last_chunk_joins_the_one_before() -> None:
    """specs/prulong.md trap 21: the released code crashes there."""
    assert split(130, 64, 3) == [(0, 64), (64, 130)]
    assert split(131, 64, 3) == [(0, 64), (64, 128), (128, 131)]
    assert split(64, 64, 3) == [(0, 64)]
    assert split(2, 64, 3) == [(0, 2)]
    assert split(10, None, 3) == [(0, 10)]
    # All the last queries observe, even where chunks are smaller than the window.
    assert split(100, 16, 64) == [(0, 16), (16, 32), (32, 100)]
    # Not only below the window: below the smallest chunk whose share covers it.
    passes, _ = resolve(Budget.of(0.5, evict="chunk"), 64 + 64 + 5, 64, floor=4, observers=4)
    assert [(p.start, p.stop) for p in passes] == [(0, 64), (64, 133)]
    passes, _ = resolve(Budget.of(0.5, evict="chunk"), 64 + 64 + 7, 64, floor=4, observers=4)
    assert [(p.start, p.stop) for p in passes] == [(0, 64), (64, 128), (128, 135)]


def test_nothing_is_cut_without_a_budget() -> None:
    passes, later = resolve(Budget(), 100, 30)
    assert later is None
    assert [(p.start, p.stop, p.cut) for p in passes] == [
        (0, 30, None),
        (30, 60, None),
        (60, 90, None),
        (90, 100, None),
    ]
