"""`model.generate(..., past_key_values=kvfoot.Cache(model, ...))` is the engine, in padded batches and in chunks."""

import gc
from functools import cache
from typing import Any

import pytest
import torch
from test_equality import DECIDED, SHAPES, pair

import kvfoot
import lawtable
import tiny
from kvfoot.core.errors import NotFinite, UsageError
from kvfoot.core.hooks import Needs
from kvfoot.core.reading import Reader
from kvfoot.core.registry import methods
from kvfoot.engine.dropin import Cache

LENGTHS = (75, 33, 64)
PROMPTS = [tiny.tokens(n, n) for n in LENGTHS]
WIDTH = max(LENGTHS)
STRICT: dict[str, Any] = {"poison": True, "kv_memory": 1 << 23}
SNAP: dict[str, Any] = {"method": "snapkv", "options": {"window": 3}, "keep": 0.5}


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


def generate(model: Any, prompts: list[list[int]], past: Any, new: int = 6, **how: Any) -> list[list[int]]:
    batch = padded(prompts)
    how = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": new} | how
    out = model.generate(**batch, past_key_values=past, **how)
    return out[:, batch["input_ids"].shape[1] :].tolist()


@cache
def model() -> Any:
    return tiny.make("llama")


def runs(cases: list[lawtable.Case]) -> list[Any]:
    """Every method in chunks of 7; in larger ones and in one pass with one budget each."""
    once = {64: {"keep": 0.5, "evict": "chunk"}, None: {"budget": 24, "evict": "post"}}
    found: list[tuple[str, dict[str, Any], dict[str, Any], int | None]] = []
    for name, options, mode in cases:
        if Needs.PRE_ROPE in methods()[name].needs or name == "retroattention":
            continue
        for chunk in (7, 64, None):
            if chunk == 7 or mode in ({}, once[chunk]):
                found.append((name, options, mode, chunk))
        if issubclass(methods()[name], Reader):
            found.append((name, options, {"budget": 24}, 7))
    return [pytest.param(*case, id=f"{case[0]}-{lawtable.label(case[2])}-{case[3]}") for case in found]


@pytest.mark.parametrize(("method", "options", "mode", "chunk"), runs(lawtable.first_cases()))
def test_a_padded_batch_gets_the_engines_tokens(
    method: str, options: dict[str, Any], mode: dict[str, Any], chunk: int | None
) -> None:
    """Chunks of transformers lie at other tokens of a padded prompt than the engine's: what is evicted does not."""
    how = {"method": method, "options": options, **mode}
    with Cache(model(), **how, **STRICT) as past:
        found = generate(model(), PROMPTS, past, prefill_chunk_size=chunk)
        record = past.record()
        assert past._runner is not None
        past._runner.cache.check()
    assert past._runner.cache.pool.owned == 0
    expected = tiny.Strict(model()).generate(PROMPTS, chunk=chunk, max_new_tokens=6, **how)
    assert found == [r.tokens for r in expected]
    theirs = expected[0].record
    assert record.kept == theirs.kept
    assert record.footprint == theirs.footprint
    assert record.tokens == theirs.tokens
    assert record.memory.held_bytes == theirs.memory.held_bytes


@pytest.mark.parametrize("kind", list(SHAPES))
def test_every_family(kind: str) -> None:
    """Windows, sinks of the softmax, layers without RoPE: what holds for the engine holds here."""
    one, plain = pair(kind)
    with Cache(one, **STRICT) as past:
        assert generate(one, PROMPTS, past, prefill_chunk_size=16) == [
            generate(plain, [p], transformers_cache())[0] for p in PROMPTS
        ]
    if kind in DECIDED:
        how = SNAP | {"evict": "chunk"}
        with Cache(one, **how, **STRICT) as past:
            found = generate(one, PROMPTS, past, prefill_chunk_size=16)
        expected = tiny.Strict(one).generate(PROMPTS, chunk=16, max_new_tokens=6, **how)
        assert found == [r.tokens for r in expected]


@pytest.mark.parametrize("chunk", [None, 7])
def test_full_is_transformers_own_cache(chunk: int | None) -> None:
    plain = tiny.make("llama")
    expected = [generate(plain, [p], transformers_cache())[0] for p in PROMPTS]
    with Cache(model(), **STRICT) as past:
        assert generate(model(), PROMPTS, past, prefill_chunk_size=chunk) == expected


def transformers_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


@pytest.mark.parametrize(("passes", "chunk"), [(7, 16), (16, 7), (1, 7), (None, 7), (40, 33)])
def test_the_methods_chunks_need_not_be_those_of_transformers(passes: int | None, chunk: int) -> None:
    how, prompts = SNAP | {"evict": "chunk"}, [tiny.tokens(n, n) for n in (50, 21)]
    with Cache(model(), **how, chunk=chunk, **STRICT) as past:
        found = generate(model(), prompts, past, prefill_chunk_size=passes)
        record = past.record()
    expected = tiny.Strict(model()).generate(prompts, chunk=chunk, max_new_tokens=6, **how)
    assert found == [r.tokens for r in expected]
    assert record.footprint == expected[0].record.footprint


def test_a_last_chunk_shorter_than_the_window_joins_the_one_before() -> None:
    """Its observers come from both passes of transformers (15 = 7 + 7 + 1)."""
    prompt = tiny.tokens(15)
    for mode in ({"keep": 0.5}, {"keep": 0.5, "evict": "chunk"}, {"budget": 5, "evict": "chunk"}):
        how = {"method": "snapkv", "options": {"window": 3}, **mode}
        with Cache(model(), **how, **STRICT) as past:
            found = generate(model(), [prompt], past, new=8, prefill_chunk_size=7)
        assert found[0] == tiny.Strict(model()).generate([prompt], chunk=7, max_new_tokens=8, **how)[0].tokens


def test_memory_is_freed() -> None:
    with Cache(model(), **SNAP, **STRICT) as past:
        generate(model(), [tiny.tokens(400)], past)
        memory = past.record().memory
    assert memory.dense_bytes == 4 * 400 * 64
    assert memory.held_bytes == 4 * 208 * (64 + 4), "200 entries are 13 pages of 16, each with its position"


def test_sampling_runs_and_the_seed_decides() -> None:
    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        with Cache(model(), **SNAP, **STRICT) as past:
            return generate(model(), PROMPTS, past, do_sample=True, num_return_sequences=2)

    assert sample(1) == sample(1) != sample(2)
    assert len(sample(1)) == 6


# Later calls


@pytest.mark.parametrize("mode", [{"keep": 0.5}, {"budget": 24, "evict": "chunk"}, {"keep": 0.5, "evict": "chunk"}])
def test_a_cache_goes_on_with_its_conversation(mode: dict[str, Any]) -> None:
    """A second call with the whole conversation reads its new tokens only, as a session's turn does."""
    how = {"method": "snapkv", "options": {"window": 3}, **mode}
    prompt, turn = tiny.tokens(75), tiny.tokens(9, 9)
    with Cache(model(), **how, **STRICT) as past:
        first = generate(model(), [prompt], past)[0]
        second = generate(model(), [prompt + first + turn], past)[0]
        record = past.record()
    engine = tiny.Strict(model())
    # The last token of the first answer is read with the turn.
    run = tiny.run(engine, prompt, "snapkv", {"window": 3}, **mode, new=6)
    assert run.generated == first
    from kvfoot.engine.clock import Clock
    from kvfoot.engine.sampler import Sampling

    logits = run.runner.feed(run.sequence, [first[-1], *turn], None)
    run.sequence.generated, run.sequence.done = [], False
    run.runner.decode([run.sequence], [logits], 6, Sampling(), Clock())
    assert second == run.generated
    assert record.tokens == {"prompt": 75 + 9, "generated": 12}


def test_a_cache_does_not_mind_the_callers_mode() -> None:
    prompt, turn = tiny.tokens(75), tiny.tokens(9, 9)

    def talk(first: Any, second: Any) -> list[int]:
        with Cache(model(), **SNAP, **STRICT) as past:
            with first():
                answer = generate(model(), [prompt], past)[0]
            with second():
                return generate(model(), [prompt + answer + turn], past)[0]

    modes = (torch.no_grad, torch.inference_mode)
    assert len({tuple(talk(a, b)) for a in modes for b in modes}) == 1


def test_two_calls_with_a_cache_each() -> None:
    for _ in range(2):
        with Cache(model(), **SNAP, **STRICT) as past:
            found = generate(model(), PROMPTS, past)
        assert found == [r.tokens for r in tiny.Strict(model()).generate(PROMPTS, chunk=None, max_new_tokens=6, **SNAP)]


def test_another_prompt_needs_another_cache() -> None:
    with Cache(model(), **SNAP, **STRICT) as past:
        generate(model(), [tiny.tokens(40)], past)
        with pytest.raises(UsageError, match=r"make a new kvfoot\.Cache"):
            generate(model(), [tiny.tokens(60, 3)[:50]], past, prefill_chunk_size=7)
    past.close()
    with pytest.raises(UsageError, match="closed"):
        generate(model(), [tiny.tokens(60)], past)


# The model


def test_close_leaves_the_model_as_it_was() -> None:
    one = tiny.make("llama").train()
    ids = torch.tensor([tiny.tokens(20)])
    before, hooks = one.config._attn_implementation, len(one.model._forward_hooks) + len(one.model._forward_pre_hooks)
    plain = generate(one, PROMPTS[:1], transformers_cache())
    past = Cache(one, **SNAP, **STRICT)
    found = generate(one, PROMPTS[:1], past)
    with torch.no_grad():
        attached = one(ids).logits
    assert generate(one, PROMPTS[:1], transformers_cache()) == plain, "another cache gets transformers' own numbers"
    past.close()
    assert one.config._attn_implementation == before
    assert len(one.model._forward_hooks) + len(one.model._forward_pre_hooks) == hooks
    assert all(module.training for module in one.modules())
    with torch.no_grad():
        assert torch.equal(one(ids).logits, attached)
    assert generate(one, PROMPTS[:1], transformers_cache()) == plain != found


def test_caches_may_overlap() -> None:
    one = tiny.make("llama")
    a = Cache(one, **SNAP, **STRICT)
    first = generate(one, PROMPTS[:1], a)
    with Cache(one, **STRICT) as b:
        generate(one, PROMPTS[:1], b)
    generate(one, [PROMPTS[0] + first[0] + [5]], a)
    a.close()
    with Cache(one, **STRICT) as b:
        generate(one, PROMPTS[:1], b)
    assert not one.config._attn_implementation.startswith("kvfoot")


def test_a_forgotten_cache_leaves_no_hook() -> None:
    one = tiny.make("llama")
    past = Cache(one, **STRICT)
    assert one.model._forward_hooks
    del past
    gc.collect()
    assert not one.model._forward_hooks
    assert not one.model._forward_pre_hooks


def test_a_peft_adapter() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(tiny.make("llama"), config).eval()
    plain = [generate(adapted, [p], transformers_cache())[0] for p in PROMPTS]
    assert plain != [generate(model(), [p], transformers_cache())[0] for p in PROMPTS]
    with Cache(adapted, **STRICT) as past:
        assert generate(adapted, PROMPTS, past) == plain
    with Cache(adapted, **SNAP, **STRICT) as past:
        found = generate(adapted, PROMPTS, past, prefill_chunk_size=16)
    merged = adapted.merge_and_unload()
    assert found == [r.tokens for r in tiny.Strict(merged).generate(PROMPTS, chunk=16, max_new_tokens=6, **SNAP)]


def test_prompt_learning_is_refused() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(UsageError, match="PROMPT_TUNING puts entries of its own into the cache"):
        Cache(peft.get_peft_model(tiny.make("llama"), config))


def test_a_device_map(tmp_path: Any) -> None:
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    model().save_pretrained(tmp_path)
    mapped = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"}, dtype=torch.float32)
    mapped.generation_config.eos_token_id = None
    with Cache(mapped, **SNAP, **STRICT) as past:
        found = generate(mapped, PROMPTS, past, prefill_chunk_size=16)
    assert found == [r.tokens for r in tiny.Strict(model()).generate(PROMPTS, chunk=16, max_new_tokens=6, **SNAP)]


def test_layers_on_several_devices_are_refused() -> None:
    one = tiny.make("llama")
    one.model.layers[1].to("meta")
    with pytest.raises(UsageError, match="the model's layers are on cpu, meta"):
        Cache(one)


# What is refused


def test_methods_that_need_a_pass_of_their_own() -> None:
    for name in methods():
        if Needs.PRE_ROPE in methods()[name].needs:
            with pytest.raises(UsageError, match=rf"{name} renumbers positions \(PRE_ROPE\)"):
                Cache(model(), name, keep=0.5)
    for option in ("verify", "rectify"):
        with pytest.raises(UsageError, match=f"refreshkv: {option} reads tokens again"):
            Cache(model(), "refreshkv", options={option: 3})
    with pytest.raises(UsageError, match="retroattention reads tokens again to correct them, generate"):
        Cache(model(), "retroattention")
    with pytest.raises(UsageError, match="refreshkv: prerope=true needs the model's own RoPE beside generate"):
        Cache(model(), "refreshkv", options={"prerope": True})
    with pytest.raises(UsageError, match="snapkv: patch=true adds tokens to a pass"):
        Cache(model(), "snapkv", options={"patch": True}, keep=0.5, evict="chunk")


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"num_beams": 2}, "beam search is not supported"),
        ({"prompt_lookup_num_tokens": 2}, "assisted decoding is not supported"),
    ],
)
def test_decoding_that_rewrites_the_cache(how: dict[str, Any], named: str) -> None:
    with Cache(model(), **SNAP, **STRICT) as past, pytest.raises(UsageError, match=named):
        generate(model(), [tiny.tokens(12) * 3], past, new=12, eos_token_id=96, **how)


def test_what_a_cache_cannot_do_says_so() -> None:
    import copy

    with Cache(model(), **STRICT) as past:
        for name in ("crop", "reorder_cache", "batch_select_indices", "batch_repeat_interleave"):
            with pytest.raises(UsageError, match="is not supported with"):
                getattr(past, name)(1)
        with pytest.raises(UsageError, match="cannot be copied"):
            copy.deepcopy(past)
        with pytest.raises(UsageError, match="no record yet"):
            past.record()


def test_pads_on_the_right() -> None:
    ids = torch.tensor([tiny.tokens(10), tiny.tokens(10, 1)])
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with Cache(model(), **STRICT) as past, pytest.raises(UsageError, match="row 1 of the batch has pads after tokens"):
        model().generate(ids, attention_mask=mask, past_key_values=past, max_new_tokens=2, pad_token_id=0)
    mask[1] = 0
    with Cache(model(), **STRICT) as past, pytest.raises(UsageError, match="row 1 of the batch has no tokens"):
        model().generate(ids, attention_mask=mask, past_key_values=past, max_new_tokens=2, pad_token_id=0)


@torch.no_grad()
def test_a_prompt_in_pieces_of_unknown_number() -> None:
    """Where the mask does not tell, a second piece is not taken for a later turn."""
    ids = torch.tensor([tiny.tokens(20)])
    with Cache(model(), **SNAP, **STRICT) as past:
        model()(ids[:, :12], past_key_values=past)
        with pytest.raises(UsageError, match=r"prompt=input_ids\.shape\[1\]"):
            model()(ids[:, 12:], past_key_values=past)
    with Cache(model(), **SNAP, prompt=20, chunk=12, **STRICT) as past:
        model()(ids[:, :12], past_key_values=past)
        found = model()(ids[:, 12:], past_key_values=past).logits[0, -1]
        assert past.record().tokens["prompt"] == 20
    run = tiny.run(tiny.Strict(model()), tiny.tokens(20), "snapkv", {"window": 3}, keep=0.5, chunk=12, new=1)
    assert (found - run.passes[-1].logits).abs().max() < 1e-5
    # A mask cut out of a longer one looks like a prompt's first chunk; the next pass shows that it was not.
    longer = torch.ones(1, 40, dtype=torch.long)[:, :20]
    with Cache(model(), **SNAP, **STRICT) as past, pytest.raises(UsageError, match="seemed to have 40"):
        model().generate(ids, attention_mask=longer, past_key_values=past, max_new_tokens=3, pad_token_id=0)


@torch.no_grad()
def test_positions_of_ones_own() -> None:
    ids = torch.tensor([tiny.tokens(10)])
    with Cache(model(), **STRICT) as past, pytest.raises(UsageError, match="position_ids"):
        model()(ids, position_ids=torch.arange(10)[None] + 3, past_key_values=past)


def test_training_and_bad_values() -> None:
    ids = torch.tensor([tiny.tokens(10)])
    with Cache(model(), **STRICT) as past, pytest.raises(UsageError, match="does not train"):
        model()(ids, past_key_values=past)
    with pytest.raises(UsageError, match="unknown method"):
        Cache(model(), "snapvk")
    with pytest.raises(UsageError, match="prompt=0"):
        Cache(model(), prompt=0)
    for how in ({"keep": 2.0}, {}):
        with pytest.raises(UsageError, match="keep"), Cache(model(), "snapkv", **how) as past:
            generate(model(), PROMPTS, past)


def test_a_prompt_longer_than_the_models_positions() -> None:
    with Cache(model(), **STRICT) as past, pytest.raises(UsageError, match="exceed the model's 512 positions"):
        generate(model(), [tiny.tokens(510)], past, new=6)


def test_nan_is_not_passed_on_and_a_broken_cache_says_so() -> None:
    def damage(one: Any) -> None:
        one.model.layers[1].self_attn.v_proj.weight.data[0, 0] = float("nan")

    one = tiny.make("llama")
    with Cache(one, **STRICT) as past:
        damage(one)
        with pytest.raises(NotFinite, match="attention of layer 1"):
            generate(one, PROMPTS, past)
        with pytest.raises(UsageError, match="failed halfway"):
            generate(one, PROMPTS, past)


def test_it_is_public() -> None:
    assert kvfoot.Cache is Cache
