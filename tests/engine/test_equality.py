"""`full` is the unmodified model: logits and greedy tokens of transformers, whatever the chunks."""

from functools import cache
from typing import Any

import pytest
import torch

import tiny
from kvfoot.engine.engine import Engine
from kvfoot.models.layout import FAMILIES

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"layers": 3, "kv_heads": 2, "group": 3, "positions": 1024},
    "qwen2": {"layers": 3, "kv_heads": 3, "group": 2, "head_dim": 16, "hidden": 96, "positions": 1024, "seed": 1},
    "qwen3": {"layers": 3, "kv_heads": 2, "group": 2, "head_dim": 16, "positions": 1024, "seed": 2},
    "olmo2": {"layers": 3, "positions": 1024, "seed": 3},
    "phi3": {"layers": 3, "positions": 1024, "seed": 4, "sliding_window": 1024},
    "mistral": {"layers": 3, "head_dim": 16, "positions": 1024, "seed": 5, "sliding_window": None},
    "smollm3": {"layers": 4, "positions": 1024, "seed": 6, "no_rope_layers": [1, 0, 1, 0]},
}


@cache
def pair(kind: str) -> tuple[Any, Any]:
    """The same model twice: one for the engine, one left alone, on transformers' own eager attention."""
    reference = tiny.make(kind, **SHAPES[kind])
    reference.set_attn_implementation("eager")
    return tiny.make(kind, **SHAPES[kind]), reference


def test_every_family_is_here() -> None:
    assert set(SHAPES) == set(FAMILIES)


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
        *((kind, {"rope_parameters": {"rope_type": "default", "rope_theta": 5500.0}}) for kind in SHAPES),
    ],
)
def test_a_window_or_a_rotation_gone_wrong_would_show(kind: str, change: dict[str, Any]) -> None:
    """The comparisons above mean something: each of these differs by a thousand times their tolerance."""
    other = tiny.make(kind, **(SHAPES[kind] | change))
    other.set_attn_implementation("eager")
    prompt = tiny.tokens(130)
    found, expected = reference_logits(other, prompt)[-1], reference_logits(pair(kind)[1], prompt)[-1]
    assert (found - expected).abs().max() > 0.1


@pytest.mark.parametrize("mode", [{"keep": "0.25", "evict": "post"}, {"budget": 40, "evict": "chunk"}])
@pytest.mark.parametrize("kind", list(SHAPES))
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
