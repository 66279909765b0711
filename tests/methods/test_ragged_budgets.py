"""A layer's budget divided among its heads (arXiv 2407.11550), and that the memory is really freed."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from kvfoot.cache.kv import KVCache
from kvfoot.cache.pool import Pool
from kvfoot.core.budget import Budget
from kvfoot.core.errors import BrokenPromise
from kvfoot.core.registry import method
from kvfoot.engine.clock import Clock
from kvfoot.engine.runner import Runner, session_pages
from kvfoot.engine.sampler import Sampling
from kvfoot.methods import tools

MODES: list[dict[str, Any]] = [
    {"keep": 0.3},
    {"keep": 0.3, "evict": "chunk"},
    {"budget": 20},
    {"budget": 20, "evict": "chunk"},
]


def share(blocks: list[Tensor], keep: int, floor: Fraction, heads: list[Tensor] | None = None) -> list[int]:
    """KV heads in the order of the rows where none are given."""
    order = torch.arange(sum(map(len, blocks))).split([len(b) for b in blocks])
    return tools.share(blocks, heads or list(order), keep, floor)


def heads(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize("alpha", ["0", "0.2", "0.5", "1/3", "1"])
@pytest.mark.parametrize("keep", [1, 7, 20, 39, 40])
def test_shares_add_up_exactly(keep: int, alpha: str) -> None:
    """The release rounds each head by itself and drifts."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(8, 40, generator=generator) ** torch.arange(1, 9)[:, None]
        found = share([scores], keep, Fraction(alpha))
        assert sum(found) == 8 * keep
        assert all(int(Fraction(alpha) * keep) <= n <= 40 for n in found)
        if alpha == "1":
            assert found == [keep] * 8


def test_shares_of_unequal_rows_take_no_more_than_there_is() -> None:
    """Under `budget` with `chunk`, rows were cut before: one has 6 entries, all of them the best."""
    short, long = torch.full((1, 6), 9.0), torch.rand(2, 30)
    found = share([long, short], 15, Fraction("0.2"))
    assert found[2] == 6
    assert sum(found) == 45
    assert share([long[:1], torch.zeros(1, 6)], 18, Fraction(1)) == [30, 6]


def test_identical_heads_get_equal_budgets() -> None:
    row = torch.rand(50)
    assert share([row.expand(4, 50)], 13, Fraction("0.2")) == [13] * 4
    # Max-pooling makes neighbours equal: the edge of the best lies inside a plateau.
    assert share([row.repeat_interleave(7).expand(4, 350)], 13, Fraction("0.2")) == [13] * 4
    assert share([torch.zeros(4, 50)], 13, Fraction("0.2")) == [13] * 4


def test_a_uniform_head_gets_more_than_a_peaked_one() -> None:
    uniform, peaked = [1 / 20] * 20, [0.9] + [0.1 / 19] * 19
    low, high = share([heads(peaked, uniform)], 8, Fraction("0.2"))
    # Of the 16 best, 15 are the uniform head's: 0.8 x 15 + 0.2 x 8 = 13.6, and 0.8 x 1 + 0.2 x 8 = 2.4.
    assert (low, high) == (2, 14)


def test_what_is_left_over_goes_by_head_whatever_the_blocks() -> None:
    """Blocks are sorted by length: a tie must not depend on it."""
    a, b, half = torch.tensor([[9.0, 8, 7, 0]]), torch.tensor([[6.0, 0, 0, 0]]), Fraction(1, 2)
    # Shares 0.5 x 3 + 1 and 0.5 x 1 + 1: both end in a half.
    assert share([a, b], 2, half) == [3, 1]
    assert share([b, a], 2, half, [torch.tensor([1]), torch.tensor([0])]) == [1, 3]
    assert share([b, a], 2, half) == [2, 2]


@pytest.mark.parametrize("mode", MODES)
def test_alpha_1_is_snapkv(mode: dict[str, Any]) -> None:
    engine, options = tiny.Strict(tiny.qwen2()), {"window": 4, "kernel": 5, "pool": "avg"}
    ada = tiny.run(engine, tiny.tokens(80), "adakv", options | {"alpha": 1.0}, chunk=20, **mode)
    snap = tiny.run(engine, tiny.tokens(80), "snapkv", options, chunk=20, **mode)
    assert ada.generated == snap.generated
    assert [s.kept for s in ada.passes] == [s.kept for s in snap.passes]


@pytest.mark.parametrize("mode", MODES)
def test_rows_differ_and_their_pages_are_all_that_is_held(mode: dict[str, Any]) -> None:
    engine = tiny.Strict(tiny.qwen2(), page_size=4)
    run = tiny.run(engine, tiny.tokens(80), "adakv", {"window": 4}, chunk=20, new=8, **mode)
    held, after = run.sequence.held, run.sequence.rows.lens
    assert held is not None
    assert (held.min(1) < held.max(1)).any(), "no layer is ragged"
    assert (held.sum(1) == 3 * (24 if "keep" in mode else 20)).all()
    # Frozen where the prompt ends: rows grow by the tokens decoded, or stay as they are.
    assert np.array_equal(after, held + (7 if "keep" in mode else 0))
    pool = run.runner.cache.pool
    assert pool.owned == (-(-after // 4)).sum()
    assert pool.owned * 4 - after.sum() < 4 * after.size


@pytest.mark.parametrize("page_size", [1, 16])
def test_held_bytes_are_the_sum_of_ragged_rows(page_size: int) -> None:
    """Beside snapkv's at the same budget: to the byte, or to the last page of each row."""
    engine = tiny.Strict(tiny.qwen2(), page_size=page_size)
    results = {}
    for name in ("adakv", "snapkv"):
        (result,) = engine.generate(
            [tiny.tokens(96)], method=name, options={"window": 4}, keep=0.25, chunk=32, max_new_tokens=2
        )
        record = result.record
        rows = np.array(record.sequences[0].kept)
        pages = -(-rows // page_size)
        entry = engine.geometry.entry_bytes(4) + 4  # with its position
        assert record.memory.held_bytes == pages.sum() * page_size * entry
        results[name] = rows.sum()
    assert results["adakv"] == results["snapkv"] == 9 * 24


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("mode", MODES)
def test_a_question_on_ragged_rows_fits_the_pages_of_the_plan(mode: dict[str, Any], page_size: int) -> None:
    """A fork of a ragged prompt, in a pool of exactly what is planned; the kept rows stay as they were."""
    engine = tiny.Strict(tiny.qwen2(), page_size=page_size)
    geometry, chosen = engine.geometry, method("adakv", {"window": 4})
    plan = engine.plan(chosen, Budget.of(**mode), 75, 20, 0)
    pages = session_pages(plan, geometry, page_size, 12)
    pool = Pool(geometry.head_dim, engine.dtype, page_size=page_size, planes=plan.planes, pages=pages, poison=True)
    runner = Runner(engine.model, engine.backend, KVCache(pool, geometry), frozenset())
    base = runner.open(tiny.tokens(75), chosen, plan, Sampling(), 0)
    runner.prefill(base)
    held = base.rows.lens.copy()
    for _ in range(2):
        twin = runner.fork(base, Sampling(), 0)
        logits = runner.feed(twin, tiny.tokens(5, 1), 2)
        runner.decode([twin], [logits], 8, Sampling(), Clock())
        runner.cache.check()
        assert np.array_equal(twin.rows.lens, held + (12 if "keep" in mode else 0))
        runner.cache.release(twin.rows)
    assert np.array_equal(base.rows.lens, held)


def test_a_layer_with_room_left_goes_on_growing() -> None:
    run = tiny.run(tiny.Strict(tiny.llama()), tiny.tokens(20), "adakv", {"window": 4}, budget=24, new=10)
    assert run.sequence.held is not None
    assert (run.sequence.held == 20).all()
    assert (run.sequence.rows.lens == 24).all()


def test_a_sum_that_is_not_kept_is_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvfoot.methods.evict.adakv import AdaKV

    monkeypatch.setattr(AdaKV, "allocate", lambda self, blocks: [blocks[0].keep, blocks[0].keep - 1])
    with pytest.raises(BrokenPromise, match="adakv: the rows of layer 0 hold 19 entries together, the plan says 20"):
        tiny.run(tiny.Strict(tiny.llama()), tiny.tokens(40), "adakv", {"window": 4}, keep=0.25)
