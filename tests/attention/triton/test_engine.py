"""Whole runs on the triton backend: the tokens, the survivors and the footprint of the sdpa backend."""

from typing import Any

import pytest
import torch
from paged import DEVICE

import tiny
from families import SHAPES, build
from kvfoot.attention.triton import topk
from kvfoot.models.fusion import Fuse
from replayed import decode
from tape import Rerun


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "BLOCK", 32)
    monkeypatch.setattr(topk, "FINE", 128)


RUNS: list[dict[str, Any]] = [
    {"method": "full", "chunk": 17},
    {"method": "snapkv", "keep": 0.5, "options": {"window": 4}},
    {"method": "h2o", "keep": 0.5, "chunk": 20},
    {"method": "adakv", "keep": 0.5, "options": {"window": 4}},
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["method"])
def test_tokens_equal_those_of_sdpa(run: dict[str, Any]) -> None:
    model = tiny.make(layers=1, kv_heads=2, group=3, head_dim=64).to(DEVICE)
    prompt = [(7 * i * i + 3) % tiny.VOCAB for i in range(37)]
    found, expected = (
        tiny.Strict(model, backend=name).generate([prompt], max_new_tokens=3, **run)[0] for name in ("triton", "sdpa")
    )
    assert found.tokens == expected.tokens
    assert found.record.footprint == expected.record.footprint
    assert found.record.config["backend"] == "triton"


RESIDENT: list[dict[str, Any]] = [
    {"method": "h2o", "keep": 0.5},
    {"method": "h2o", "keep": 0.5, "options": {"group": "max", "recent": 0.25}},
    {"method": "tova", "keep": 0.5},
    {"method": "streaming", "budget": 16},
    {"method": "streamingllm", "budget": 16, "options": {"sink": 2}},
    {"method": "random", "budget": 16, "options": {"window": 3}},
    {"method": "heads", "options": {"roles": "10/01", "sink": 2, "window": 8}},
    {"method": "refreshkv", "budget": 12, "options": {"every": 2, "similarity": 0.9}},
    {"method": "refreshkv", "budget": 12, "options": {"every": 2, "mode": "score_only", "schedule": "fixed"}},
    {"method": "refreshkv", "budget": 12, "options": {"every": 2, "mode": "score_only", "similarity": 0.8}},
    {"method": "tidaldecode", "budget": 12, "options": {"skip": 0, "again": 1}},
    {"method": "tokenselect", "budget": 12, "options": {"sink": 2, "window": 3, "similarity": 0.9}},
    {"method": "quest", "budget": 12, "options": {"page": 4, "skip": 0}},
    {"method": "quest", "budget": 48, "options": {"skip": 1}, "lengths": (70, 49)},
]


@pytest.mark.parametrize("run", RESIDENT, ids=lambda run: f"{run['method']}{run.get('options', '')}")
def test_a_resident_step_writes_the_same(run: dict[str, Any]) -> None:
    """Lengths on the device, one plan for all layers, idle rows, emitted scores, lists and pages beside tables."""
    run = dict(run)
    model = tiny.make(layers=2, kv_heads=2, group=3, head_dim=64).to(DEVICE)
    prompts = [[(7 * i * i + n) % tiny.VOCAB for i in range(n)] for n in run.pop("lengths", (37, 20, 29))]
    found, expected = (
        tiny.Strict(model, backend=name, graph=graph).generate(prompts, max_new_tokens=4, chunk=None, **run)
        for name, graph in (("triton", Rerun), ("sdpa", False))
    )
    assert [r.tokens for r in found] == [r.tokens for r in expected]
    assert found[0].record.footprint == expected[0].record.footprint
    assert found[0].record.config["decode"] == "graph"


FUSED = [(kind, torch.float32, 1) for kind in SHAPES if "-" not in kind and kind != "gpt_oss"]
FUSED += [("qwen3", torch.bfloat16, 1), ("olmo2", torch.bfloat16, 1)]
FUSED += [("llama", torch.float32, 3), ("qwen2", torch.float32, 2), ("phi3", torch.float32, 3)]


@pytest.mark.parametrize(("kind", "dtype", "level"), FUSED, ids=str)
def test_a_fused_step_of_every_family(kind: str, dtype: torch.dtype, level: int) -> None:
    """Norms, MLPs and RoPE by kernels: the tokens of the same step by the model's own operations."""
    from kvfoot.attention.triton import layer

    model = build(kind).to(DEVICE, dtype)
    given: dict[str, Any] = {"lengths": (9,) if level > 1 else (9, 4), "new": 3, "record": Rerun, "page_size": 16}
    found, expected = (decode(model, "full", fuse=fuse, **given) for fuse in (Fuse(layer, level), 0))
    assert found.steps == 2
    assert found.tokens == expected.tokens


def test_a_fused_step_of_the_triton_backend() -> None:
    """The default. Kernels of the layer and of attention, in bf16."""
    model = tiny.make(layers=1, kv_heads=2, group=3, head_dim=64, dtype=torch.bfloat16).to(DEVICE)
    given: dict[str, Any] = {"lengths": (13,), "new": 3, "record": Rerun, "page_size": 16, "backend": "triton"}
    found, expected = (decode(model, "full", fuse=fuse, **given) for fuse in (None, 0))
    assert found.steps == 2
    assert found.tokens == expected.tokens
