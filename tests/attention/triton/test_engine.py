"""Whole runs on the triton backend: the tokens, the survivors and the footprint of the sdpa backend."""

from typing import Any

import pytest
from paged import DEVICE

import tiny

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
