"""The foundation on a CUDA device: the same numbers as transformers there, and the same survivors as on the CPU."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from families import DECIDED, SHAPES, build
from kvfoot import Engine
from kvfoot.attention import naive, sdpa
from kvfoot.attention.state import Ragged
from kvfoot.core.budget import Budget
from kvfoot.core.reading import Reader
from kvfoot.core.registry import method, methods
from kvfoot.engine.sampler import Sampling
from lawtable import OPTIONS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


UNTIED = {"adakv": {"window": 3, "kernel": 3, "pool": "avg"}, "keynorm": {"skip": 1}}
"""Where equal scores are the rule, rounding decides: plateaus of max-pooling, norms of one token's keys in layer 0."""


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


def both(model: Any, prompts: list[list[int]], backend: str = "sdpa", **more: Any) -> None:
    """Tokens, footprint and bytes held equal the CPU's."""
    options: dict[str, Any] = {"chunk": 48, "max_new_tokens": 24, **more}
    on_cpu = Engine(copy.deepcopy(model), poison=True).generate(prompts, **options)
    on_gpu = Engine(copy.deepcopy(model).cuda(), backend=backend, poison=True).generate(prompts, **options)
    assert [r.tokens for r in on_gpu] == [r.tokens for r in on_cpu]
    assert on_gpu[0].record.footprint == on_cpu[0].record.footprint
    assert on_gpu[0].record.memory.held_bytes == on_cpu[0].record.memory.held_bytes


@pytest.mark.parametrize("evict", ["post", "chunk"])
@pytest.mark.parametrize("name", methods())
def test_every_method_writes_the_cpus_tokens(name: str, evict: str) -> None:
    cls = methods()[name]
    size = {"budget": 24} if cls.budgeted or issubclass(cls, Reader) else {}
    more = {"evict": evict} if cls.budgeted else {}
    options = UNTIED.get(name, OPTIONS.get(name, [{}])[0])
    both(peaked(16), [prompt(n) for n in (150, 61, 97)], method=name, options=options, **size, **more)


STORED: list[dict[str, Any]] = [
    {"store": 8},
    {"store": 4, "mode": "score_only"},
    {"values": "host", "mode": "score_only"},
    {"store": 4, "values": "host", "mode": "score_only"},
    {"prerope": True, "query": "concat"},
]


@pytest.mark.parametrize("options", STORED)
def test_refreshkv_over_a_cache_stored_otherwise(options: dict[str, Any]) -> None:
    """Few bits, values in pinned host memory: footprints and bytes are the CPU's, and without rounding the tokens."""
    more: dict[str, Any] = {"method": "refreshkv", "budget": 24, "max_new_tokens": 24}
    prompts, model = [prompt(n) for n in (150, 61, 97)], peaked(64)
    cpu = Engine(copy.deepcopy(model), poison=True).generate(prompts, options=options | {"every": 3}, **more)
    torch.cuda.empty_cache()
    engine = Engine(copy.deepcopy(model).cuda(), poison=True)
    gpu = engine.generate(prompts, options=options | {"every": 3}, **more)
    if "store" not in options:
        assert [r.tokens for r in gpu] == [r.tokens for r in cpu]
    assert gpu[0].record.footprint == cpu[0].record.footprint
    assert gpu[0].record.memory == cpu[0].record.memory
    plan = engine.plan(method("refreshkv", options), Budget.of(None, 24), 150, None, 24)
    pool = engine.runner([plan], 24).cache.pool
    assert pool.k.is_cuda
    assert pool.v.is_cuda == ("values" not in options)
    assert pool.v.is_pinned() == ("values" in options)


@pytest.mark.parametrize("options", [o for o in STORED if "store" in o])
def test_few_bits_round_as_on_the_cpu(options: dict[str, Any]) -> None:
    """Logits along the CPU's own tokens: three steps of four within a quarter of what rounding itself changes there.

    Not the tokens: a number at the border of two codes goes either way, as keys that are 1e-6 off show on the CPU
    alone. That is one channel of an entry, or once in a while another entry among the chosen; a quantiser that rounds
    otherwise changes every step as much as rounding does.
    """
    model, found, rounded = peaked(64), [], []
    for ids in (prompt(n) for n in (150, 61, 97)):
        said = along(model, options, ids)
        exact = {name: value for name, value in options.items() if name != "store"}
        rounded.append(steps_apart(along(model, exact, ids, said), said))
        found.append(steps_apart(along(copy.deepcopy(model).cuda(), options, ids, said), said))
    assert torch.cat(found).quantile(0.75) <= torch.cat(rounded).median() / 4


def along(model: Any, options: dict[str, Any], ids: list[int], said: torch.Tensor | None = None) -> torch.Tensor:
    """Logits fp32 [24, vocabulary] of refreshkv's steps, fed the greatest of `said`, or of its own."""
    engine, chosen = Engine(model, poison=True, kv_memory=1 << 26), method("refreshkv", options | {"every": 3})
    plan = engine.plan(chosen, Budget.of(None, 24), len(ids), None, 24)
    runner = engine.runner([plan], 24)
    sequence = runner.open(ids, chosen, plan, Sampling(), 0)
    logits = [runner.prefill(sequence).cpu()]
    for i in range(23):
        row = logits[i] if said is None else said[i]
        logits.append(runner.feed(sequence, [int(row.argmax())], None).cpu())
    return torch.stack(logits)


def steps_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The greatest difference of each step but the first, which reads no stored entry."""
    return (a - b)[1:].abs().amax(-1)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize("kind", SHAPES)
def test_every_family_writes_the_cpus_tokens(kind: str, backend: str) -> None:
    model = build(kind)
    both(model, [tiny.tokens(n, n) for n in (150, 61)], backend)
    if kind in DECIDED:
        options = UNTIED["adakv"]
        both(model, [tiny.tokens(n, n) for n in (150, 61)], backend, method="adakv", options=options, keep=0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ragged_and_masked_attention_is_as_close_as_the_definition_in_that_precision(dtype: torch.dtype) -> None:
    """Error against fp32 <= 2x that of the same operations in `dtype`, for rows of all lengths at once."""
    torch.manual_seed(0)
    lens = np.array([1, 700, 16, 333, 1000])
    k, v = (torch.randn(330, 16, 64, device="cuda", dtype=dtype) for _ in range(2))
    pages = torch.randperm(330, device="cuda")[: 5 * 63].view(5, 63)
    q = torch.randn(5, 3, 64, device="cuda", dtype=dtype) * 3
    rows = Ragged(pages, lens)
    exact = naive.decode(q, k, v, rows, 0.125)
    found = sdpa.decode(q, k, v, rows, 0.125)
    low = torch.stack(
        [
            (q[r] @ k[pages[r]].flatten(0, 1)[:m].mT * 0.125).softmax(-1) @ v[pages[r]].flatten(0, 1)[:m]
            for r, m in enumerate(lens.tolist())
        ]
    )
    assert (found.out.float() - exact.out).abs().max() <= 2 * (low.float() - exact.out).abs().max() + 1e-6
    assert (found.lse - exact.lse).abs().max() < 1e-2
    visible = torch.rand(1, 37, 100, device="cuda") < 0.5
    visible[..., 0] = True
    q, k, v = (torch.randn(*s, device="cuda", dtype=dtype) for s in ((2, 3, 37, 64), (2, 100, 64), (2, 100, 64)))
    exact, found = (b.attend(q, k, v, 0.125, True, visible) for b in (naive, sdpa))
    bias = torch.zeros(37, 100, device="cuda", dtype=dtype).masked_fill(~visible[0], -torch.inf)
    low = (q @ k[:, None].mT * 0.125 + bias).softmax(-1) @ v[:, None]
    assert (found.out.float() - exact.out).abs().max() <= 2 * (low.float() - exact.out).abs().max() + 1e-6
