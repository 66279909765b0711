"""Traps 23, 24 and 26 of specs/prulong.md section 7, and the promises of decision D10."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
import stub
import tiny
from kvfoot.attention import naive, sdpa
from kvfoot.attention.backend import Backend
from kvfoot.cache.pool import Pool
from kvfoot.core.budget import Budget
from kvfoot.core.errors import BrokenPromise, NotFinite, PoolExhausted, UsageError
from kvfoot.core.hooks import Keep, Method, Seen
from kvfoot.core.registry import method as find_method
from kvfoot.engine.engine import Engine
from kvfoot.engine.runner import peak_pages

BACKENDS: dict[str, Backend] = {"naive": naive, "sdpa": sdpa}


@pytest.mark.parametrize("name", list(BACKENDS))
def test_trap_23_scores_are_fp32_where_the_model_is_bf16(name: str) -> None:
    """bf16 has 8 bits: close scores tie in a top-k. Inputs are bf16, the scores are those of exact arithmetic."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 8, 16).bfloat16(), torch.randn(2, 300, 16).bfloat16()
    backend = BACKENDS[name]
    lse = backend.attend(q, k, k, 0.25, True).lse
    s = torch.einsum("rhnd,rmd->rhnm", q.double(), k.double()) * 0.25
    s = s.masked_fill(~torch.ones(8, 300, dtype=torch.bool).tril(292), -torch.inf)
    exact = s.softmax(-1).sum(-2)
    for scores in (backend.window_scores(q, k, 0.25), backend.column_scores(q, k, lse, 0.25)):
        assert scores.dtype == torch.float32
        assert torch.allclose(scores.double(), exact, rtol=1e-4, atol=1e-7)
        assert scores[0, 0].unique().numel() == 300
        assert scores[0, 0].bfloat16().unique().numel() < 250, "bf16 would not tie here: this test shows nothing"


def test_trap_23_a_bf16_model_hands_methods_fp32_scores() -> None:
    seen: list[torch.dtype] = []

    @dataclass(frozen=True)
    class Spy(type(find_method("h2o"))):  # type: ignore[misc]
        def observe(self, now: Seen) -> dict[str, Tensor]:
            assert now.scores is not None
            seen.extend([now.scores.dtype, now.planes["mass"].dtype])
            return super().observe(now)

    engine = tiny.Strict(tiny.make("llama", dtype=torch.bfloat16))
    engine.generate([tiny.tokens(40)], method=Spy(), keep=0.5, evict="chunk", chunk=8, max_new_tokens=3)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("name", ["snapkv", "random"])
def test_trap_24_survivors_are_final_and_budgets_add_up(name: str) -> None:
    """`keep` with chunk eviction: what survives its chunk is never ranked again, so what is kept grows with N."""
    engine = tiny.Strict(tiny.llama())
    run = tiny.run(engine, tiny.tokens(96), name, {"window": 3}, keep=0.25, evict="chunk", chunk=16, new=5)
    for before, after in zip(run.passes, run.passes[1:], strict=False):
        for layer in range(2):
            for head in range(2):
                assert set(before.kept[layer][head]) <= set(after.kept[layer][head])
    assert [len(s.kept[0][0]) for s in run.passes] == [4, 8, 12, 16, 20, 24, 25, 26, 27, 28]


def test_trap_24_selection_ignores_what_was_kept_before() -> None:
    """Softmax over the new keys only: a chunk's survivors are those of the same keys with nothing stored before."""
    engine = tiny.Strict(tiny.llama())
    run = tiny.run(engine, tiny.tokens(64), "snapkv", {"window": 3}, keep=0.25, evict="chunk", chunk=16, new=1)
    mask = oracle.visibility(run.passes, 2, 2, 64)
    _, scores = oracle.forward(engine.model, run.tokens[:64], mask)
    for layer in range(2):
        for head in range(2):
            group = scores[layer, 3 * head : 3 * head + 3, 45:48, 32:48]
            group = group.masked_fill(~torch.ones(3, 16, dtype=torch.bool).tril(13), -torch.inf)
            votes = group.softmax(-1).sum(1)[:, :13]
            smooth = torch.nn.functional.avg_pool1d(votes, 5, 1, 2).mean(0)
            best = {32 + int(smooth.argmax()), 45, 46, 47}
            assert best == {p for p in run.passes[2].kept[layer][head] if p >= 32}


@pytest.mark.parametrize("name", list(BACKENDS))
@pytest.mark.parametrize(("n", "m"), [(3, 7), (1, 5), (4, 4), (7, 70), (64, 131)])
def test_trap_26_causal_masks_are_aligned_bottom_right(name: str, n: int, m: int) -> None:
    """Query i of n sees entries [0, m - n + i]; torch's own is_causal is aligned top left."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, n, 8), torch.randn(2, m, 8), torch.randn(2, m, 8)
    out = BACKENDS[name].attend(q, k, v, 0.5, True).out
    for i in range(n):
        end = m - n + i + 1
        p = (torch.einsum("rhd,rmd->rhm", q[:, :, i], k[:, :end]) * 0.5).softmax(-1)
        assert torch.allclose(out[:, :, i], torch.einsum("rhm,rmd->rhd", p, v[:, :end]), atol=1e-5)
    if 1 < n < m:
        # The last entry is seen by the last query alone: changing it changes no other.
        v2 = v.clone()
        v2[:, -1] += 100
        changed = (BACKENDS[name].attend(q, k, v2, 0.5, True).out - out).abs().amax((0, 1, 3)) > 1e-3
        assert changed.tolist() == [False] * (n - 1) + [True]


@dataclass(frozen=True)
class Liar(Method):
    """Keeps `extra` entries more than it was told to."""

    extra: int = 1

    def keep(self, seen: Seen) -> Keep:
        count = seen.keep + self.extra
        return Keep(kept=torch.arange(count).expand(seen.positions.shape[0], count))


@pytest.mark.parametrize("extra", [1, -2])
@pytest.mark.parametrize("mode", [{"evict": "post"}, {"evict": "chunk"}])
def test_a_broken_promise_is_found(extra: int, mode: dict[str, Any]) -> None:
    engine = tiny.Strict(tiny.llama())
    with pytest.raises(BrokenPromise, match=r"layer 0, KV head 0 holds \d+ entries, the plan says \d+"):
        engine.generate([tiny.tokens(40)], method=Liar(extra), keep=0.5, chunk=8, max_new_tokens=3, **mode)


def test_a_promise_broken_in_one_row_names_it() -> None:
    class OneRow(Liar):
        def keep(self, seen: Seen) -> Keep:
            count = seen.keep - (1 if seen.layer == 1 and 1 in seen.heads.tolist() and len(seen.heads) == 1 else 0)
            return Keep(kept=torch.arange(count).expand(seen.positions.shape[0], count))

    engine = tiny.Strict(tiny.llama())
    from kvfoot.core.budget import Cut, PromptPass
    from kvfoot.core.hooks import POSITION, Plan

    ragged = np.array([[8, 8], [8, 9]], np.int32)
    plan = Plan((PromptPass(0, 20, Cut("all", ragged)),), None, (POSITION,))
    with pytest.raises(BrokenPromise, match="layer 1, KV head 1 holds 8 entries, the plan says 9"):
        tiny.run(engine, tiny.tokens(20), OneRow(), plan=plan)


def poisoned(name: str) -> Any:
    model = tiny.make("llama", layers=3)
    with torch.no_grad():
        model.get_parameter(name).fill_(float("nan"))
    return model


@pytest.mark.parametrize(
    ("weight", "where"),
    [
        ("model.embed_tokens.weight", "attention of layer 0"),
        ("model.layers.0.self_attn.q_proj.weight", "attention of layer 0"),
        ("model.layers.1.self_attn.k_proj.weight", "attention of layer 1"),
        ("model.layers.2.self_attn.v_proj.weight", "attention of layer 2"),
        ("model.layers.0.mlp.down_proj.weight", "attention of layer 1"),
        ("model.layers.2.mlp.down_proj.weight", "the last layer's output"),
        ("lm_head.weight", "the last layer's output"),
    ],
)
def test_nan_is_reported_with_the_layer_where_it_shows_first(weight: str, where: str) -> None:
    with pytest.raises(NotFinite, match=f"first in {where}"):
        Engine(poisoned(weight), kv_memory=1 << 20)


def test_infinite_values_are_reported_as_well() -> None:
    model = tiny.make("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(NotFinite, match="try --dtype float32"):
        Engine(model, kv_memory=1 << 20)


def test_a_pool_that_is_too_small_is_refused_before_anything_is_written() -> None:
    engine = tiny.Strict(tiny.llama(), kv_memory=4 * 3 * 16 * 2 * 8 * 4)
    assert engine.generate([tiny.tokens(40)], max_new_tokens=2)
    with pytest.raises(PoolExhausted, match=r"needs 16 more pages and 12 of 12 are free: raise --kv-memory"):
        engine.generate([tiny.tokens(60)], max_new_tokens=2)


def test_a_pass_that_does_not_fit_leaves_everything_as_it_was() -> None:
    from kvfoot.cache.kv import KVCache
    from kvfoot.engine.runner import Runner
    from kvfoot.engine.sampler import Sampling

    engine = tiny.Strict(tiny.llama(), page_size=4)
    pool = Pool(8, torch.float32, page_size=4, pages=4 * 5, poison=True)
    runner = Runner(engine.model, engine.backend, KVCache(pool, engine.geometry), frozenset())
    plan = engine.plan(find_method("full"), Budget(), 12, 4, 20)
    sequence = runner.open(tiny.tokens(12), find_method("full"), plan, Sampling(), 0)
    logits = runner.prefill(sequence)
    with torch.inference_mode():
        k, before, passes = pool.k.clone(), tiny.kept(runner, sequence), len(sequence.trace.passes)
    with pytest.raises(PoolExhausted, match="needs 12 more pages and 8 of 20 are free"):
        runner.feed(sequence, tiny.tokens(12), None)
    runner.cache.check()
    assert torch.equal(pool.k.nan_to_num(), k.nan_to_num())
    assert tiny.kept(runner, sequence) == before
    assert len(sequence.trace.passes) == passes
    assert sequence.rows.seen == 12
    # A smaller pass still goes.
    assert runner.feed(sequence, tiny.tokens(8), None).shape == logits.shape


@pytest.mark.parametrize("chunk", [16, None])
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("full", {}),
        ("snapkv", {"keep": 0.5, "evict": "post"}),
        ("snapkv", {"keep": 0.5, "evict": "chunk"}),
        ("snapkv", {"budget": 64, "evict": "chunk"}),
        ("h2o", {"budget": 64, "evict": "chunk"}),
        ("h2o", {"budget": 24, "evict": "post"}),
        ("streaming", {"keep": 0.5, "evict": "post"}),
    ],
)
def test_the_pool_of_an_accelerator_is_exactly_what_the_run_needs(
    name: str, mode: dict[str, Any], page_size: int, chunk: int | None
) -> None:
    """`peak_pages` is the pages owned at the worst moment: prompts shorter than the budget included."""
    from kvfoot.cache.kv import KVCache
    from kvfoot.engine.runner import Runner

    engine = tiny.Strict(tiny.llama(), page_size=page_size)
    options = {"window": 4} if name == "snapkv" else {}
    for prompt in (20, 75):
        plan = engine.plan(find_method(name, options), Budget.of(**mode), prompt, chunk, 60)
        pages = peak_pages(plan, engine.geometry, page_size, 59)
        pool = Pool(8, torch.float32, page_size=page_size, planes=plan.planes, pages=pages, poison=True)
        runner = Runner(engine.model, engine.backend, KVCache(pool, engine.geometry), frozenset())
        run = tiny.run(engine, tiny.tokens(prompt), name, options, plan=plan, runner=runner, new=60)
        assert len(run.generated) == 60
        assert pool.peak == pages


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("name", ["snapkv", "h2o"])
def test_held_bytes(name: str, page_size: int) -> None:
    """At most what is kept x its bytes x 1.02, and one page per row; planes included."""
    engine = stub.engine(kv_heads=4, layers=2)
    engine.page_size = page_size
    try:
        options = {"window": 16} if name == "snapkv" else {}
        record = engine.generate(
            [tiny.tokens(2000), tiny.tokens(777)],
            method=name,
            options=options,
            keep=0.25,
            evict="chunk",
            chunk=512,
            max_new_tokens=1,
        )[0].record
    finally:
        engine.page_size = 16
    side = 4 if name == "snapkv" else 8
    entry = 2 * 2 * 4 + side
    kept = sum(sum(map(sum, s.kept)) for s in record.sequences)
    expected = 8 * (round(0.25 * 2000) + (round(0.25 * 777) if name == "h2o" else round(0.25 * 512) + round(66.25)))
    assert kept == expected
    rows = 2 * 8
    assert kept * entry <= record.memory.held_bytes <= kept * entry * 1.02 + rows * page_size * entry
    assert record.memory.dense_bytes == 8 * (2000 + 777) * 2 * 2 * 4


@pytest.mark.parametrize("window", [5, 12])
def test_post_eviction_does_not_depend_on_the_chunk(window: int) -> None:
    """All of the last `window` queries vote, even where chunks are smaller than the window."""
    engine = tiny.Strict(tiny.llama())
    runs = [
        tiny.run(engine, tiny.tokens(60), "snapkv", {"window": window}, keep=0.5, chunk=chunk, new=4)
        for chunk in (None, 3, 8, 59)
    ]
    assert all(run.kept() == runs[0].kept() for run in runs)
    assert all(run.generated == runs[0].generated for run in runs)


def test_bad_requests() -> None:
    engine = tiny.Strict(tiny.make("llama", positions=64))
    bad: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "no prompt was given"),
        ([[]], {}, "the prompt is empty"),
        ([[1, 2], []], {}, "the prompt is empty"),
        ([tiny.tokens(60)], {"max_new_tokens": 5}, r"60 prompt tokens \+ 5 new ones exceed the model's 64 positions"),
        ([tiny.tokens(9)], {"max_new_tokens": 0}, "max_new_tokens=0: give at least 1"),
        ([tiny.tokens(9)], {"chunk": 0}, "chunk=0: give at least 1 token"),
        ([tiny.tokens(9)], {"method": "snapkv"}, "snapkv needs a size"),
        ([tiny.tokens(9)], {"keep": 0.5}, "full takes neither keep nor budget"),
        ([tiny.tokens(9)], {"temperature": -1}, "temperature=-1 is negative"),
        ([tiny.tokens(9)], {"top_p": 0}, r"top_p=0 is outside \(0, 1\]"),
        ([tiny.tokens(9)], {"question": "why?"}, "a question goes with a text prompt"),
        ("text", {}, "has no tokenizer"),
    ]
    for prompts, arguments, text in bad:
        with pytest.raises(UsageError, match=text):
            engine.generate(prompts, **({"max_new_tokens": 4} | arguments))
    with pytest.raises(UsageError, match=r"unknown backend 'sdpaa' .did you mean sdpa"):
        Engine(tiny.llama(), backend="sdpaa")
    bad_ids = [[5, tiny.VOCAB]], [[-1]]
    for prompts in bad_ids:
        with pytest.raises(UsageError, match="outside the model's vocabulary"):
            engine.generate(prompts, max_new_tokens=4)
    with pytest.raises(UsageError, match="page_size=0"):
        Engine(tiny.llama(), page_size=0)


def test_the_largest_prompt_fits() -> None:
    engine = tiny.Strict(tiny.make("llama", positions=64))
    assert len(engine.generate([tiny.tokens(60)], max_new_tokens=4)[0].tokens) == 4
