"""Budgets that differ between layers: PyramidKV's line, and one set per layer for TOVA."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import tiny
from kvfoot.core.budget import Budget
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Seen
from kvfoot.core.registry import method

DEEP = Geometry(layers=32, kv_heads=8, group=4, head_dim=128, positions=1 << 17)


def line(keep: str | Fraction, prompt: int = 32768, **options: int) -> np.ndarray:
    """Selected entries per layer, the window not counted, of one pass."""
    chosen = method("pyramidkv", options)
    (part,) = chosen.prepare(DEEP, prompt, None, Budget.of(keep)).passes
    assert part.cut is not None
    assert (part.cut.counts == part.cut.counts[:, :1]).all()
    return part.cut.counts[:, 0] - chosen.protected


@pytest.mark.parametrize(
    ("kept", "first", "last"), [(16384, 31824, 824), (9830, 19044, 506), (3276, 6264, 188), (19661, 19597, 19597)]
)
def test_pyramidkv_budgets_of_the_paper(kept: int, first: int, last: int) -> None:
    """specs/prulong.md 2.2, n = 32,768 and 32 layers: .5, .7 and .9 evicted, truncated; and .4, where it is SnapKV."""
    found = line(Fraction(kept, 32768))
    assert (found[0], found[-1]) == (first, last)


@pytest.mark.parametrize("beta", [1, 2, 20, 1000])
@pytest.mark.parametrize("keep", ["0.5", "0.4", "0.3", "0.2", "0.1", "0.01"])
def test_pyramidkv_falls_and_adds_up(keep: str, beta: int) -> None:
    found = line(keep, beta=beta)
    mean = round(float(keep) * 32768) - 64
    assert (np.diff(found) <= 0).all()
    assert 0 <= found.sum() - 32 * mean < 32 * 32 / 2
    assert found[0] <= 32768 - 64
    if beta == 1:
        assert (found == mean).all()


@pytest.mark.parametrize("prompt", [1, 3, 40, 70])
def test_pyramidkv_on_prompts_that_need_no_line(prompt: int) -> None:
    """Shorter than window or budget: never more for high layers than for low ones, nothing below the window."""
    plan = method("pyramidkv").prepare(DEEP, prompt, None, Budget.of(budget=100))
    assert plan.later is not None
    assert (plan.later.counts == 100).all()
    (part,) = method("pyramidkv").prepare(DEEP, prompt, None, Budget.of("0.5")).passes
    assert part.cut is not None
    assert (part.cut.counts == min(prompt, 64)).all()


@pytest.mark.parametrize("mode", [{"keep": 0.3}, {"keep": 0.3, "evict": "chunk"}, {"budget": 20}])
def test_pyramidkv_with_beta_1_is_snapkv(mode: dict[str, float]) -> None:
    engine = tiny.Strict(tiny.llama())
    options = {"window": 4}
    flat = tiny.run(engine, tiny.tokens(80), "pyramidkv", options | {"beta": 1}, chunk=20, **mode)  # type: ignore[arg-type]
    plain = tiny.run(engine, tiny.tokens(80), "snapkv", options, chunk=20, **mode)  # type: ignore[arg-type]
    assert [s.kept for s in flat.passes] == [s.kept for s in plain.passes]
    assert flat.generated == plain.generated


def test_tova_keeps_the_top_of_the_mean_row() -> None:
    torch.manual_seed(0)
    scores = torch.rand(2, 3, 30)
    state = Seen(0, torch.arange(2), torch.arange(30).expand(2, 30), 0, 30, 7, scores)
    kept = method("tova").keep(state).kept
    assert kept is not None
    best = sorted(range(30), key=lambda i: -float(scores[:, :, i].sum()))[:7]
    assert kept.tolist() == [sorted(best)] * 2


def test_tova_protects_nothing() -> None:
    """The newest entry goes too where it attends to itself least (no sinks, no recency: unlike kvpress)."""
    scores = torch.full((2, 3, 6), 0.2)
    scores[..., 5] = 0.0
    state = Seen(0, torch.arange(2), torch.arange(6).expand(2, 6), 5, 1, 5, scores)
    lost = method("tova").keep(state).lost
    assert lost is not None
    assert lost.tolist() == [5, 5]


def test_tova_drops_one_entry_per_step_and_shares_it() -> None:
    run = tiny.run(tiny.Strict(tiny.qwen2()), tiny.tokens(40), "tova", keep=0.5, new=12)
    for before, after in zip(run.passes, run.passes[1:], strict=False):
        for old, new in zip(before.kept, after.kept, strict=True):
            assert all(sorted(row) == sorted(new[0]) for row in new)
            assert len(new[0]) == 20
            assert len(set(old[0]) - set(new[0])) <= 1
