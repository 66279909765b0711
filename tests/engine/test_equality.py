"""`full` is the unmodified model: logits and greedy tokens of transformers, whatever the chunks."""

from typing import Any

import pytest
import torch

import tiny
from families import DECIDED, FLAT, ROPE, SHAPES, WINDOWED, build, pair
from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method
from kvfoot.engine.engine import Engine
from kvfoot.engine.sampler import Sampling
from kvfoot.models.layout import FAMILIES


def test_every_family_is_here() -> None:
    assert {kind.partition("-")[0] for kind in SHAPES} == set(FAMILIES)


@torch.inference_mode()
def reference_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens])).logits[0]


@torch.inference_mode()
def reference_tokens(model: Any, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def gap(run: tiny.Run, reference: Any) -> float:
    """Largest difference of logits over the ends of all passes."""
    expected = reference_logits(reference, run.tokens)
    return max((s.logits - expected[s.stop - 1]).abs().max().item() for s in run.passes)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize(("chunk", "length"), [(None, 130), (7, 130), (512, 700)])
@pytest.mark.parametrize("kind", list(SHAPES))
def test_full_equals_transformers(kind: str, chunk: int | None, length: int, backend: str) -> None:
    model, reference = pair(kind)
    engine = tiny.Strict(model, backend=backend)
    prompt = tiny.tokens(length)
    run = tiny.run(engine, prompt, chunk=chunk, new=16)
    assert gap(run, reference) < 1e-4
    assert run.generated == reference_tokens(reference, prompt, 16)


@pytest.mark.parametrize("kind", list(SHAPES))
def test_attention_of_the_test_models_is_peaked(kind: str) -> None:
    """On flat attention `random` would pass for a good method, and a wrong mask would go unseen."""
    import oracle

    _, scores = oracle.forward(pair(kind)[1], tiny.tokens(130))
    last = scores[:, :, -1].softmax(-1)
    assert last.amax(-1).mean() > 0.15
    assert 20 * last.median(-1).values.mean() < last.amax(-1).mean()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("phi3", {"sliding_window": 64}),
        ("mistral", {"sliding_window": 64}),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}),
        *((kind, {"sliding_window": 2 if kind == "qwen3-window" else 21}) for kind in WINDOWED),
        ("gemma3_text", {"query_pre_attn_scalar": 20}),
        *((kind, {"rope_parameters": {**ROPE, "rope_theta": 50.0 if kind in WINDOWED else 5500.0}}) for kind in FLAT),
    ],
)
def test_a_window_or_a_rotation_gone_wrong_would_show(kind: str, change: dict[str, Any]) -> None:
    """The comparisons above mean something: each of these differs by a thousand times their tolerance."""
    other = build(kind, **change)
    other.set_attn_implementation("eager")
    prompt = tiny.tokens(130)
    found, expected = reference_logits(other, prompt)[-1], reference_logits(pair(kind)[1], prompt)[-1]
    assert (found - expected).abs().max() > 0.1


@pytest.mark.parametrize("mode", [{"keep": "0.25", "evict": "post"}, {"budget": 40, "evict": "chunk"}])
@pytest.mark.parametrize("kind", DECIDED)
def test_evicted_entries_equal_masked_ones_in_every_family(kind: str, mode: dict[str, Any]) -> None:
    """Law 2 with an oracle that knows each family's norms, rotation and fused weights."""
    import oracle

    engine = tiny.Strict(pair(kind)[0])
    run = tiny.run(engine, tiny.tokens(130), "snapkv", {"window": 8}, chunk=48, new=6, **mode)
    geometry, length = engine.geometry, run.passes[-1].stop
    mask = oracle.visibility(run.passes, geometry.layers, geometry.kv_heads, length)
    logits, _ = oracle.forward(engine.model, run.tokens[:length], mask)
    dense, _ = oracle.forward(engine.model, run.tokens[:length])
    assert max((s.logits.double() - logits[s.stop - 1]).abs().max().item() for s in run.passes) < 1e-4
    assert (run.passes[-1].logits.double() - dense[-1]).abs().max() > 1e-2, "nothing that matters was evicted"


@pytest.mark.parametrize("kind", list(SHAPES))
def test_a_batch_in_one_call_equals_transformers(kind: str) -> None:
    model, reference = pair(kind)
    engine = tiny.Strict(model)
    prompts = [tiny.tokens(n, n) for n in (5, 64, 33, 100)]
    results = engine.generate(prompts, chunk=16, max_new_tokens=8)
    assert [r.tokens for r in results] == [reference_tokens(reference, p, 8) for p in prompts]


def test_the_engine_leaves_the_model_as_it_was() -> None:
    model = tiny.make("llama")
    ids = torch.tensor([tiny.tokens(20)])
    with torch.inference_mode():
        before = model(ids).logits
        name = model.config._attn_implementation
        engine = Engine(model)
        attached = model(ids).logits
        engine.close()
        after = model(ids).logits
    assert model.config._attn_implementation == name
    assert torch.equal(before, attached), "plain calls are to go to the implementation that the model had"
    assert torch.equal(before, after)


def test_transformers_own_generate_still_works_beside_the_engine() -> None:
    model, reference = pair("llama")
    Engine(model)
    prompt = tiny.tokens(40)
    assert reference_tokens(model, prompt, 8) == reference_tokens(reference, prompt, 8)


@pytest.mark.smollm2
@pytest.mark.slow
def test_smollm2_equals_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    from kvfoot.models.load import load

    engine = Engine.load("smollm2", dtype="float32")
    reference = load("smollm2", dtype="float32", device="cpu").model
    reference.set_attn_implementation("eager")
    text = (
        "The lighthouse keeper wrote down the weather every evening: wind from the south-west, rain after dusk, two "
        "ships in sight. On the third of March the lamp failed, and he carried oil up the stairs eleven times. "
    ) * 8
    prompt = engine.tokenizer(text)["input_ids"][:300]
    assert len(prompt) == 300
    expected = reference_tokens(reference, prompt, 16)
    for chunk in (None, 512, 7):
        run = tiny.run(engine, prompt, chunk=chunk, new=16)
        assert run.generated == expected
        found = gap(run, reference)
        with capsys.disabled():
            print(f"\nsmollm2, chunk={chunk}: largest difference of logits {found:.2g}")
        assert found < 1e-4


@pytest.mark.parametrize("kind", WINDOWED)
def test_window_layers_hold_their_window_and_full_attention_still_costs_one(kind: str) -> None:
    """A layer with window W stores W - 1 entries, pages freed; by decision D6 its footprint is 1."""
    engine = tiny.Strict(pair(kind)[0], page_size=4)
    run = tiny.run(engine, tiny.tokens(130), chunk=48, new=9)
    seen = run.passes[-1].stop
    expected = [seen if w is None else w - 1 for w in engine.geometry.windows]
    assert run.sequence.rows.lens.tolist() == [[n] * engine.geometry.kv_heads for n in expected]
    assert [[sorted(row) for row in layer] for layer in run.kept()] == [
        [list(range(seen - n, seen))] * engine.geometry.kv_heads for n in expected
    ]
    assert run.runner.cache.pool.owned == sum(-(-n // 4) for n in expected) * engine.geometry.kv_heads
    footprint = run.sequence.trace.footprint()
    assert footprint.kv == footprint.peak == footprint.read == 1


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_text_that_goes_on_after_decoding_equals_transformers(kind: str) -> None:
    """Passes of several tokens over rings that have turned, and a fork of them."""
    model, reference = pair(kind)
    engine = tiny.Strict(model, page_size=4)
    plan = engine.plan(find_method("full"), Budget(), 100, 30, 40)
    runner = engine.runner([plan, plan], 60)
    run = tiny.run(engine, tiny.tokens(100), chunk=30, new=6, plan=plan, runner=runner)
    read = run.tokens[: run.passes[-1].stop]
    twin = runner.fork(run.sequence, Sampling(), 0)
    more = tiny.tokens(17, 5)
    for sequence in (twin, run.sequence):
        logits = runner.feed(sequence, list(more), 8)
        assert (logits - reference_logits(reference, read + more)[-1]).abs().max() < 1e-4
        runner.cache.check()
    for sequence in (twin, run.sequence):
        runner.cache.release(sequence.rows)
    assert runner.cache.pool.owned == 0


def test_a_model_of_windows_alone_has_nothing_for_a_method_to_decide() -> None:
    engine = tiny.Strict(pair("mistral-window")[0])
    with pytest.raises(UsageError, match="every layer of this model has a window of its own: snapkv has nothing"):
        engine.generate([tiny.tokens(60)], method="snapkv", options={"window": 4}, keep=0.5, max_new_tokens=2)


YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(("kind", "change"), [*((k, {}) for k in DECIDED), ("llama", {"rope_parameters": YARN})])
def test_positions_by_rank_are_positions_where_nothing_is_evicted(kind: str, change: dict[str, Any]) -> None:
    """PRE_ROPE: the engine's rotation is the model's, layer by layer, with YaRN's amplitude counted once."""
    reference = build(kind, **change)
    reference.set_attn_implementation("eager")
    engine = tiny.Strict(build(kind, **change))
    run = tiny.run(engine, tiny.tokens(90), "streamingllm", budget=200, evict="chunk", chunk=40, new=6)
    assert gap(run, reference) < 1e-4
    assert engine.geometry.open_layers
    if change:
        rope = engine.model.model.rotary_emb
        assert rope.attention_scaling > 1.1
