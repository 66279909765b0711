"""RefreshKV (arXiv 2411.05787) against its definition: the acceptance tests of its specification."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import readers
import tiny
from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method

K, PROMPT = 20, 90


def select(scores: Tensor, query: int, size: int, kernel: int = 7, sink: int = 0) -> tuple[list[int], dict[int, float]]:
    """Plain loops over the attention logits [H, T, T] of a KV head's query heads: (slots worst first, pooled score)."""
    weights = []
    for own in scores:
        top = max(float(own[query, j]) for j in range(query + 1))
        row = [math.exp(float(own[query, j]) - top) for j in range(query + 1)]
        weights.append([x / sum(row) for x in row])
    raw = [max(w[j] for w in weights) for j in range(query)]
    half = kernel // 2
    pooled = [math.inf if j < sink else max(raw[max(0, j - half) : j + half + 1]) for j in range(query)]
    order = sorted(range(query), key=lambda j: (pooled[j], raw[j]))
    return [*order[query - (size - 1) :], query], dict(enumerate(pooled))


def same(found: list[int], expected: list[int], pooled: dict[int, float]) -> None:
    """Equal up to entries whose scores tie within 1e-6."""
    for a, b in zip(found, expected, strict=True):
        assert a == b or abs(pooled.get(a, math.inf) - pooled.get(b, math.inf)) <= 1e-6


def state(found: tiny.Run, layer: int) -> Any:
    return found.sequence.reading[layer, (0, 1)]


@pytest.mark.parametrize("options", [{"every": 1}, {"schedule": "fixed", "every": 3}, {"mode": "score_only"}])
def test_1_a_partial_cache_that_holds_everything_is_full_attention(options: dict[str, Any]) -> None:
    full, _ = readers.run("full", {})
    found, _ = readers.run("refreshkv", options, budget=140)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(full.passes, found.passes, strict=True))


@pytest.mark.parametrize("options", [{"every": 1, "schedule": "fixed"}, {"every": 1, "similarity": 1.1}])
def test_2_a_refresh_at_every_step_is_full_attention(options: dict[str, Any]) -> None:
    full, _ = readers.run("full", {})
    found, _ = readers.run("refreshkv", options, budget=K)
    assert found.generated == full.generated
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(full.passes, found.passes, strict=True))
    assert found.sequence.trace.strides() == [1, 1]


@pytest.mark.parametrize("sink", [0, 3])
@pytest.mark.parametrize("chunk", [None, 40])
def test_3_and_4_without_a_refresh_it_is_one_selection_and_a_queue(chunk: int | None, sink: int) -> None:
    """Selected by the prompt's last query (trap 13); new tokens push the worst out and leave last."""
    options = {"similarity": -2, "max_gap": None, "sink": sink}
    found, reads = readers.run("refreshkv", options, budget=K, chunk=chunk)
    scores = readers.check(found, reads)
    for layer in range(2):
        for head in range(2):
            queue, pooled = select(scores[layer, head * 3 : head * 3 + 3], PROMPT - 1, K, sink=sink)
            for step in range(29):
                slots = reads[layer, head, PROMPT + step]
                assert len(slots) == K + 1
                same(slots, [*queue, PROMPT + step], pooled)
                queue = [*slots[1:-1], PROMPT + step]
        assert state(found, layer).slots.shape == (2, K)
    assert found.sequence.trace.strides() == [math.inf] * 2


@pytest.mark.parametrize("mode", ["full", "score_only"])
def test_5_refreshes_choose_from_everything_written_so_far(mode: str) -> None:
    """A layer-by-layer schedule: each refresh selects by its own query over all entries, generated ones included."""
    options = {"every": 3, "similarity": 0.5, "mode": mode, "max_gap": 12}
    found, reads = readers.run("refreshkv", options, budget=K, new=40)
    scores = readers.check(found, reads)
    fired = [p.refreshed for p in found.sequence.trace.passes if p.refreshed is not None]
    assert len(fired) == 39
    layers = [[bool(step[layer].all()) for step in fired] for layer in range(2)]
    assert layers[0] != layers[1], "the layers are to decide each for itself"
    for layer in range(2):
        assert 3 <= sum(layers[layer]) < 13
        assert not any(on for i, on in enumerate(layers[layer]) if (i + 1) % 3)
        for head in range(2):
            own, expected = scores[layer, head * 3 : head * 3 + 3], None
            for i, on in enumerate(layers[layer]):
                query, slots = PROMPT + i, reads[layer, head, PROMPT + i]
                if on:
                    expected, pooled = select(own, query, K)
                    if mode == "full":
                        assert slots == list(range(query + 1))
                    else:
                        same(slots, expected, pooled)
                elif expected:
                    same(slots, [*expected, query], pooled)
                    expected = [*slots[1:-1], query]
    assert found.kept()[0][0] == list(range(PROMPT + 39)), "everything is stored, once and in order"


def test_7_the_documented_always_and_never() -> None:
    never, _ = readers.run("refreshkv", {"similarity": -2, "max_gap": None}, budget=K)
    assert never.sequence.trace.strides() == [math.inf, math.inf]
    always, _ = readers.run("refreshkv", {"similarity": 1.1, "every": 4}, budget=K)
    fixed, _ = readers.run("refreshkv", {"schedule": "fixed", "every": 4}, budget=K)
    assert always.generated == fixed.generated
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(always.passes, fixed.passes, strict=True))
    assert always.sequence.trace.strides() == pytest.approx([29 / 7, 29 / 7])


def test_8_score_only_selects_what_a_full_refresh_selects() -> None:
    """For one layer and one step: outputs differ in that step's attention only."""
    model = tiny.make("llama", layers=1)
    states = {}
    for mode in ("full", "score_only"):
        options = {"schedule": "fixed", "every": 5, "mode": mode}
        found, reads = readers.run("refreshkv", options, budget=K, new=6, model=model)
        states[mode] = (state(found, 0).slots.tolist(), [len(reads[0, 0, PROMPT + i]) for i in range(5)])
    assert states["full"][0] == states["score_only"][0]
    assert states["full"][1] == [K + 1] * 4 + [PROMPT + 5]
    assert states["score_only"][1] == [K + 1] * 4 + [K]


@pytest.mark.parametrize("mode", ["full", "score_only"])
def test_9_what_is_read_is_counted(mode: str) -> None:
    """specs 2.2 without the copy: K + 1 a partial step; at a refresh a scan of n keys, and n entries or K of them."""
    S, new = 5, 31
    found, _ = readers.run("refreshkv", {"schedule": "fixed", "every": S, "mode": mode}, budget=K, new=new)
    decoded = found.sequence.trace.passes[-(new - 1) :]
    pairs = 0.0
    for i in range(1, new):
        n = PROMPT + i
        refreshed = i % S == 0
        pairs += 4 * ((n if mode == "full" else K) + n / 2 if refreshed else K + 1)
    assert sum(p.loaded.sum() + p.scan.sum() / 2 for p in decoded) == pairs
    assert found.sequence.trace.strides() == [S, S]
    assert found.sequence.trace.footprint().kv == 1
    prompt = 4 * (PROMPT * (PROMPT + 1) / 2 + PROMPT / 2)
    assert found.sequence.trace.read() == prompt + pairs


def test_a_batch_of_unequal_prompts_decides_sequence_by_sequence() -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4)
    prompts = [tiny.tokens(n, n) for n in (33, 90, 61, 120)]
    options: dict[str, Any] = {"method": "refreshkv", "options": {"every": 3, "similarity": 0.4}, "budget": 16}
    batch = engine.generate(prompts, chunk=25, max_new_tokens=40, **options)
    alone = [engine.generate([p], chunk=25, max_new_tokens=40, **options)[0] for p in prompts]
    assert [r.tokens for r in batch] == [r.tokens for r in alone]
    strides = [s.strides for s in batch[0].record.sequences]
    assert strides == [r.record.sequences[0].strides for r in alone]
    assert len({tuple(s) for s in strides}) > 1


def test_a_fork_refreshes_by_itself() -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4)
    found, _ = readers.run("refreshkv", {"every": 2}, budget=K, new=3)
    from kvfoot.engine.clock import Clock
    from kvfoot.engine.sampler import Sampling

    runner = found.runner
    twin = runner.fork(found.sequence, Sampling(), 0)
    before = state(found, 0).slots.clone()
    logits = runner.feed(twin, tiny.tokens(5, 8), None)
    runner.decode([twin], [logits], 40, Sampling(), Clock())
    assert torch.equal(state(found, 0).slots, before)
    assert twin.reading[0, (0, 1)].slots.max() > before.max()
    assert engine.geometry.layers == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"every": 0}, "every=0: steps between two checks, at least 1"),
        ({"similarity": 1.05}, "similarity=1.05 is a cosine"),
        ({"kernel": 4}, "kernel=4 has to be odd"),
        ({"max_gap": 0}, "max_gap=0: at least 1, or none"),
        ({"mode": "half"}, "mode='half' is none of full, score_only"),
    ],
)
def test_bad_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        find_method("refreshkv", options)


def test_bad_sizes() -> None:
    engine = tiny.Strict(tiny.llama())
    with pytest.raises(UsageError, match="budget=0: give at least 1 entry per row"):
        Budget.of(None, 0)
    with pytest.raises(UsageError, match="budget=513: refreshkv reads from a cache of the model's 512 positions"):
        engine.plan(find_method("refreshkv"), Budget.of(None, 513), 90, None, 1)


def test_the_default_size_is_an_eighth_of_the_prompt() -> None:
    engine = tiny.Strict(tiny.llama())
    sizes = [engine.plan(find_method("refreshkv"), Budget(), n, None, 1).reads for n in (90, 511 * 2)[:1]]
    assert sizes == [128]
    assert find_method("refreshkv").prepare(engine.geometry, 16384, None, Budget()).reads == 2048
