"""The foundation on a CUDA device: the same numbers as transformers there, and the same survivors as on the CPU."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvfoot import Engine
from kvfoot.core.budget import Budget
from kvfoot.core.registry import method
from kvfoot.engine.sampler import Sampling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

METHODS = {
    "full": {},
    "streaming": {"keep": 0.5},
    "h2o": {"keep": 0.5},
    "snapkv": {"keep": 0.5, "options": {"window": 4}},
    "random": {"keep": 0.5, "options": {"window": 4}},
}


def peaked(head_dim: int, positions: int = 2048) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=199,
        hidden_size=6 * head_dim,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=positions,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 6
            layer.self_attn.k_proj.weight *= 6
    return model


def prompt(length: int) -> list[int]:
    return torch.randint(0, 199, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize("chunk", [None, 64, 7])
def test_full_equals_transformers_in_fp32(backend: str, chunk: int | None) -> None:
    plain = peaked(16).cuda()
    engine = Engine(copy.deepcopy(plain), backend=backend, poison=True)
    ids = prompt(150)
    expected = plain.generate(torch.tensor([ids]).cuda(), max_new_tokens=24, do_sample=False)[0, 150:].tolist()
    assert engine.generate([ids], chunk=chunk, max_new_tokens=24)[0].tokens == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_close_to_fp32_as_transformers_is(dtype: torch.dtype) -> None:
    """Error of the first logits against fp32 <= 2x that of transformers' SDPA in the same dtype."""
    reference = peaked(64).cuda()
    ids = prompt(600)
    plain = copy.deepcopy(reference).to(dtype)
    with torch.inference_mode():
        exact = reference(torch.tensor([ids]).cuda()).logits[0, -1]
        theirs = plain(torch.tensor([ids]).cuda()).logits[0, -1].float()
    engine = Engine(copy.deepcopy(plain), backend="sdpa")
    full = method("full")
    plan = engine.plan(full, Budget(), 600, 128, 1)
    runner = engine.runner([plan], 1)
    ours = runner.prefill(runner.open(ids, full, plan, Sampling(), 0))
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


@pytest.mark.parametrize("evict", ["post", "chunk"])
@pytest.mark.parametrize("name", METHODS)
def test_tokens_equal_the_cpu_run(name: str, evict: str) -> None:
    model = peaked(16)
    prompts = [prompt(n) for n in (150, 61, 97)]
    options = {"method": name, "evict": evict, "chunk": 48, "max_new_tokens": 24, **METHODS[name]}
    on_cpu = Engine(copy.deepcopy(model), poison=True).generate(prompts, **options)
    on_gpu = Engine(copy.deepcopy(model).cuda(), poison=True).generate(prompts, **options)
    assert [r.tokens for r in on_gpu] == [r.tokens for r in on_cpu]
    assert on_gpu[0].record.footprint == on_cpu[0].record.footprint
    assert on_gpu[0].record.memory.held_bytes == on_cpu[0].record.memory.held_bytes
