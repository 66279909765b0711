"""Laws 1, 4, 5, 6, 7, 8 and 10: what must not change the result, and what becomes of memory."""

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from kvfoot.cache.kv import KVCache
from kvfoot.cache.pool import Pool
from kvfoot.cache.rows import Rows
from kvfoot.core.budget import Budget, PromptPass
from kvfoot.core.errors import NotFinite, PoolExhausted
from kvfoot.core.hooks import Plan
from kvfoot.core.reading import Reader
from kvfoot.core.registry import method as find_method
from kvfoot.core.registry import methods
from kvfoot.engine.clock import Clock
from kvfoot.engine.runner import Event, Runner, peak_pages
from kvfoot.engine.sampler import Sampling
from lawtable import NEW, OPTIONS, PROMPT, WHOLE, Case, cases, first_cases, label


def everything() -> list[Case]:
    """(method, options, a size that keeps everything) over the registry."""
    found: list[Case] = []
    for name, cls in methods().items():
        for options in WHOLE.get(name, OPTIONS.get(name, [{}])):
            if not cls.budgeted:
                found.append((name, options, {}))
                continue
            found += [(name, options, {"budget": PROMPT + NEW, "evict": evict}) for evict in ("post", "chunk")]
            if not cls.total:
                found += [(name, options, {"keep": 1.0, "evict": evict}) for evict in ("post", "chunk")]
    return found


def full_with_passes(engine: tiny.Strict, plan: Plan, backend_run: list[int]) -> tiny.Run:
    """Full attention in the same passes as `plan`, which may have joined a short last chunk."""
    bare = Plan(tuple(PromptPass(p.start, p.stop) for p in plan.passes))
    return tiny.run(engine, backend_run, "full", plan=bare, new=NEW)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize("chunk", [7, 64, None])
@pytest.mark.parametrize(("name", "options", "mode"), everything(), ids=label)
def test_law_1_keeping_everything_is_full_bit_for_bit(
    name: str, options: dict[str, Any], mode: dict[str, Any], chunk: int | None, backend: str
) -> None:
    engine = tiny.Strict(tiny.llama(), backend=backend)
    prompt = tiny.tokens(PROMPT, 2)
    run = tiny.run(engine, prompt, name, options, chunk=chunk, new=NEW, **mode)
    again = isinstance(run.sequence.method, Reader) and run.sequence.method.tokens > 1
    full = full_with_passes(engine, run.sequence.plan, prompt)
    assert run.generated == full.generated
    assert len(run.passes) == len(full.passes)
    for mine, theirs in zip(run.passes, full.passes, strict=True):
        if again:  # its passes have other shapes: tokens that were read before are in them once more
            torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(mine.logits, theirs.logits)
        assert mine.kept == theirs.kept
    assert run.sequence.trace.kv() == run.sequence.trace.dense()


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("kind", list(tiny.MODELS))
def test_law_4_chunks_change_nothing_where_nothing_is_evicted(kind: str, page_size: int, backend: str) -> None:
    engine = tiny.Strict(tiny.MODELS[kind](), page_size=page_size, backend=backend)
    prompt = tiny.tokens(PROMPT, 4)
    whole = tiny.run(engine, prompt, new=NEW)
    for chunk in (1, 7, 64):
        run = tiny.run(engine, prompt, chunk=chunk, new=NEW)
        assert run.generated == whole.generated
        # Relative to the logits' size: fp32 sums in another order.
        scale = whole.passes[0].logits.abs().max()
        ends = {s.stop: s.logits for s in run.passes}
        for state in whole.passes:
            assert (ends[state.stop] - state.logits).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize(("name", "options", "mode"), cases(), ids=label)
def test_law_5_and_6_pages_are_owned_once_and_all_come_back(
    name: str, options: dict[str, Any], mode: dict[str, Any]
) -> None:
    """Every pass of every run here is checked by `tiny.recorded`; a stale read meets NaN and raises NotFinite."""
    engine = tiny.Strict(tiny.llama(), page_size=4)
    run = tiny.run(engine, tiny.tokens(PROMPT, 5), name, options, chunk=16, new=NEW, **mode)
    pool, cache = run.runner.cache.pool, run.runner.cache
    assert pool.owned == sum(-(-int(n) // 4) for n in run.sequence.rows.lens.flat)
    twin = cache.fork(run.sequence.rows)
    cache.check()
    owned = pool.owned
    cache.release(twin)
    cache.check()
    assert pool.owned == owned, "a fork costs no page before one side writes"
    cache.release(run.sequence.rows)
    cache.check()
    assert pool.owned == 0
    assert torch.isnan(pool.k).all(), "freed pages are filled with NaN"
    assert torch.isnan(pool.v).all()


def test_law_6_a_stale_read_is_fatal() -> None:
    engine = tiny.Strict(tiny.llama())
    run = tiny.run(engine, tiny.tokens(40), new=2)
    rows, pool = run.sequence.rows, run.runner.cache.pool
    stolen = rows.pages[1][0][:1]
    pool.release(stolen)
    with pytest.raises(NotFinite, match="attention of layer 1"):
        run.runner.feed(run.sequence, tiny.tokens(3), None)


def small_runner(engine: tiny.Strict, plan: Plan, pages: int) -> Runner:
    """A runner over a pool of `pages` pages."""
    geometry = engine.geometry
    pool = Pool(
        geometry.head_dim,
        engine.dtype,
        page_size=engine.page_size,
        planes=plan.planes,
        pages=pages,
        poison=True,
    )
    return Runner(engine.model, engine.backend, KVCache(pool, geometry), frozenset())


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(("name", "options", "mode"), first_cases(), ids=label)
def test_law_7_what_is_evicted_makes_room(
    name: str, options: dict[str, Any], mode: dict[str, Any], page_size: int
) -> None:
    """In a pool that is one page short of two full prompts."""
    engine = tiny.Strict(tiny.llama(), page_size=page_size)
    prompt = tiny.tokens(96)
    plan = engine.plan(find_method(name, options), Budget.of(**mode), 96, 16, 1)
    if not plan.evicts:
        pytest.skip("evicts nothing")
    runner = small_runner(engine, plan, 2 * engine.geometry.rows * (96 // page_size) - 1)
    before = tiny.run(engine, prompt, chunk=16, runner=runner, new=1)
    with pytest.raises(PoolExhausted):
        tiny.run(engine, prompt, chunk=16, runner=runner, new=1)
    for rows in list(runner.cache._open):
        runner.cache.release(rows)
    runner.cache.check()
    tiny.run(engine, prompt, name, options, plan=plan, runner=runner, new=1)
    after = tiny.run(engine, prompt, chunk=16, runner=runner, new=1)
    assert after.generated == before.generated


@pytest.mark.parametrize("chunk", [16, None])
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(("name", "options", "mode"), cases(), ids=label)
def test_law_7_the_pages_that_a_plan_asks_for_are_enough(
    name: str, options: dict[str, Any], mode: dict[str, Any], page_size: int, chunk: int | None
) -> None:
    engine = tiny.Strict(tiny.llama(), page_size=page_size)
    plan = engine.plan(find_method(name, options), Budget.of(**mode), PROMPT, chunk, NEW)
    runner = small_runner(engine, plan, peak_pages(plan, engine.geometry, page_size, NEW))
    tiny.run(engine, tiny.tokens(PROMPT), name, options, plan=plan, runner=runner, new=NEW)


def shuffle(runner: Runner, rows: Rows, generator: torch.Generator) -> None:
    """Move every row to other pages, in random order."""
    pool = runner.cache.pool
    for layer, pages in enumerate(rows.pages):
        rows.indices[layer].clear()
        for head, ids in enumerate(pages):
            fresh = pool.allocate(len(ids))[torch.randperm(len(ids), generator=generator).numpy()]
            pool.copy(ids, fresh)
            pool.release(ids)
            pages[head] = fresh


@pytest.mark.parametrize(("name", "options", "mode"), first_cases(), ids=label)
def test_law_8_page_order_changes_nothing(name: str, options: dict[str, Any], mode: dict[str, Any]) -> None:
    """Bit for bit, though all pages change their places after every pass."""
    engine = tiny.Strict(tiny.llama(), page_size=4)
    prompt = tiny.tokens(PROMPT, 8)
    plain = tiny.run(engine, prompt, name, options, chunk=16, new=NEW, **mode)
    plan = engine.plan(find_method(name, options), Budget.of(**mode), PROMPT, 16, NEW)
    generator = torch.Generator().manual_seed(0)

    def move(event: Event) -> None:
        with torch.inference_mode():
            shuffle(runner, runner.cache._open[0], generator)

    runner = engine.runner([plan], NEW, move)
    moved = tiny.run(engine, prompt, name, options, plan=plan, runner=runner, new=NEW)
    assert any((np.diff(ids) < 0).any() for layer in moved.sequence.rows.pages for ids in layer)
    for mine, theirs in zip(moved.passes, plain.passes, strict=True):
        assert torch.equal(mine.logits, theirs.logits)
        assert mine.kept == theirs.kept


LENGTHS = (75, 31, 64, 7, 90, 50, 33, 16)


@pytest.mark.parametrize(("kind", "chunk"), [("llama", 16), ("llama", None), ("qwen2", 16)])
@pytest.mark.parametrize(("name", "options", "mode"), cases(), ids=label)
def test_law_8_and_10_a_batch_of_unequal_prompts(
    name: str, options: dict[str, Any], mode: dict[str, Any], kind: str, chunk: int | None
) -> None:
    """Each of eight prompts gets the tokens, logits and survivors of its run alone."""
    engine = tiny.Strict(tiny.MODELS[kind]())
    prompts = [tiny.tokens(n, n) for n in LENGTHS]
    chosen, budget = find_method(name, options), Budget.of(**mode)
    plans = [engine.plan(chosen, budget, n, chunk, NEW) for n in LENGTHS]
    runner = engine.runner(plans, NEW)
    sampling = Sampling()
    log: dict[int, list[tiny.Snapshot]] = {}
    with tiny.recorded(log, runner):
        sequences = [
            runner.open(p, chosen, plan, sampling, i) for i, (p, plan) in enumerate(zip(prompts, plans, strict=True))
        ]
        logits = [runner.prefill(s, i) for i, s in enumerate(sequences)]
        runner.decode(sequences, logits, NEW, sampling, Clock())
    for prompt, sequence in zip(prompts, sequences, strict=True):
        alone = tiny.run(engine, prompt, name, options, chunk=chunk, new=NEW, **mode)
        assert sequence.generated == alone.generated
        for mine, theirs in zip(log[id(sequence)], alone.passes, strict=True):
            assert (mine.logits - theirs.logits).abs().max() <= 1e-5 * theirs.logits.abs().max()
            assert mine.kept == theirs.kept
    together = engine.generate(prompts, method=name, options=options, chunk=chunk, max_new_tokens=NEW, **mode)
    assert [r.tokens for r in together] == [s.generated for s in sequences]
