"""Whole runs on the triton backend: the tokens, the survivors and the footprint of the sdpa backend."""

from typing import Any

import pytest
from paged import DEVICE

import tiny
from kvfoot.attention.triton import select
from tape import Rerun


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "BLOCK", 32)
    monkeypatch.setattr(select, "BINS", 128)
    monkeypatch.setattr(select, "COMPARED", 1)


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
    {"method": "heads", "options": {"roles": "10/01", "sink": 2, "window": 8}},
    {"method": "refreshkv", "budget": 12, "options": {"every": 2, "similarity": 0.9}},
    {"method": "refreshkv", "budget": 12, "options": {"every": 2, "mode": "score_only", "schedule": "fixed"}},
    {"method": "refreshkv", "budget": 12, "options": {"every": 2, "mode": "score_only", "similarity": 0.8}},
    {"method": "tidaldecode", "budget": 12, "options": {"skip": 0, "again": 1}},
    {"method": "tokenselect", "budget": 12, "options": {"sink": 2, "window": 3, "similarity": 0.9}},
]


@pytest.mark.parametrize("run", RESIDENT, ids=lambda run: f"{run['method']}{run.get('options', '')}")
def test_a_resident_step_writes_the_same(run: dict[str, Any]) -> None:
    """Lengths on the device, one plan for all layers, idle rows, emitted scores, lists beside tables."""
    model = tiny.make(layers=2, kv_heads=2, group=3, head_dim=64).to(DEVICE)
    prompts = [[(7 * i * i + n) % tiny.VOCAB for i in range(n)] for n in (37, 20, 29)]
    found, expected = (
        tiny.Strict(model, backend=name, graph=graph).generate(prompts, max_new_tokens=4, chunk=None, **run)
        for name, graph in (("triton", Rerun), ("sdpa", False))
    )
    assert [r.tokens for r in found] == [r.tokens for r in expected]
    assert found[0].record.footprint == expected[0].record.footprint
    assert found[0].record.config["decode"] == "graph"
