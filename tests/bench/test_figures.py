"""Figures follow from what was done: bytes from the trace, rooflines from bytes, ratios from both."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from kvfoot import Engine
from kvfoot.bench import memory, shapes
from kvfoot.bench.capacity import Filling, capacity
from kvfoot.bench.decode import Decoding, decode
from kvfoot.bench.eviction import Evicting, eviction
from kvfoot.bench.prefill import Reading, prefill
from kvfoot.bench.variant import TRANSFORMERS, Variant
from kvfoot.core.errors import UsageError

SNAPKV = Variant("snapkv", {"window": 8}, "0.25", evict="chunk", chunk=64)
ENTRY, ROWS = 2 * 16 * 4, 4
"""Of the tiny shape in fp32."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(shapes.build("tiny", torch.float32, "cpu"), name="tiny")


def quiet(line: str) -> None:
    pass


def consistent(row: dict[str, Any], bandwidth: float, batch: int) -> None:
    assert row["roofline_ms"] == pytest.approx((row["weights_bytes"] + row["kv_bytes"]) / bandwidth * 1e3)
    assert row["ratio"] == pytest.approx(row["ms"] / row["roofline_ms"])
    assert row["ms"] == np.median(row["rounds_ms"]) > 0
    assert row["tokens_per_second"] == pytest.approx(batch / row["ms"] * 1e3)


def test_decode(engine: Engine) -> None:
    what = Decoding((SNAPKV, Variant()), 400, batch=2, steps=5, rounds=3, warm=4)
    said: list[str] = []
    figures = decode(engine, what, said.append, bandwidth=1e9)
    sides = figures["sides"]
    assert list(sides) == ["snapkv keep=0.25 window=8 chunk", "full", TRANSFORMERS]
    assert figures["interleaved"]
    for row in sides.values():
        consistent(row, 1e9, 2)
        assert row["weights_bytes"] == shapes.streamed_bytes(engine.model)
        assert (len(row["rounds_ms"]), len(row["steps_ms"])) == (3, 15)
        assert row["rounds_ms"] == pytest.approx([np.mean(row["steps_ms"][i : i + 5]) for i in (0, 5, 10)])
    prompt = 400 - 5 - 3 * 6
    # A step reads what is stored and its own entry; the first one of a round is not measured.
    own = [5 + 6 * r + i + 1 for r in range(3) for i in range(1, 6)]
    mean = prompt + np.mean(own)
    assert sides["full"]["kv_bytes"] == sides[TRANSFORMERS]["kv_bytes"] == pytest.approx(2 * ROWS * ENTRY * mean)
    kept = 5 * 16 + round((prompt - 320) / 4)
    cut = sides["snapkv keep=0.25 window=8 chunk"]
    assert cut["entries_per_row"] == kept
    assert cut["kv_bytes"] == pytest.approx(2 * ROWS * ENTRY * (kept + np.mean(own)))
    # A round of every side, in an order that rotates.
    order = [line.split(": ")[1].rsplit(" ", 4)[0] for line in said if line.startswith("round")]
    names = list(sides)
    assert order == [*names, *names[1:], *names[:1], *names[2:], *names[:2]]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_reader_that_refreshes(engine: Engine, batch: int) -> None:
    """Every 4 steps all entries, else a partial cache of 16; of a round of 8 two steps refresh."""
    refresh = Variant("refreshkv", {"schedule": "fixed", "every": 4}, budget=16)
    what = Decoding((refresh,), 300, batch, steps=8, rounds=2, warm=4, transformers=False)
    (row,) = decode(engine, what, quiet, bandwidth=1e9)["sides"].values()
    consistent(row, 1e9, batch)
    assert row["refreshing_steps"] == 4
    assert {row["refresh_ms"], row["quiet_ms"]} <= {*row["steps_ms"], *_middles(row["steps_ms"])}
    prompt = 300 - 5 - 2 * 9
    full = [prompt + i for i in (8, 12, 16, 20)]  # of steps 7 to 14 and 16 to 23, with the step's own entry
    scanned = [n / 2 for n in full]
    least, most = (batch * ROWS * ENTRY * (sum(full) + 12 * 16 + extra) / 16 for extra in (0, sum(scanned) + 12))
    assert least <= row["kv_bytes"] <= most


def _middles(values: list[float]) -> list[float]:
    return [(a + b) / 2 for a in values for b in values]


def test_random_tokens_instead_of_synthetic_entries(engine: Engine) -> None:
    adakv = Variant("adakv", {"window": 8}, "0.25", chunk=64)
    what = Decoding((adakv,), 202, steps=3, rounds=1, warm=1, synthetic=False, transformers=False)
    (row,) = decode(engine, what, quiet, bandwidth=1e9)["sides"].values()
    assert row["entries_per_row"] == (202 - 2 - 4) / 4
    assert "random tokens" in what.settings()["entries"]
    with pytest.raises(UsageError, match="--fill prompt"):
        decode(engine, dataclasses.replace(what, synthetic=True), quiet, bandwidth=1e9)


def test_sides_that_do_not_fit_together(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    what = Decoding((SNAPKV, Variant()), 400, steps=2, rounds=1, warm=1)
    needs = what.needs(engine.geometry, 4, 16)
    dense = ROWS * ENTRY * 400
    assert needs["full"] == dense
    assert needs[TRANSFORMERS] == dense + 3 * dense // 2
    monkeypatch.setattr(memory, "free", lambda device: max(needs.values()))
    figures = decode(engine, what, quiet, bandwidth=1e9)
    assert not figures["interleaved"]
    assert set(figures["sides"]) == set(needs)
    monkeypatch.setattr(memory, "free", lambda device: max(needs.values()) - 1)
    with pytest.raises(UsageError, match="are needed"):
        decode(engine, what, quiet, bandwidth=1e9)


def test_transformers_is_left_as_it_was_and_ours_goes_on(engine: Engine) -> None:
    before = engine.generate([[1, 2, 3, 4]], max_new_tokens=5)[0].tokens
    decode(engine, Decoding((Variant(),), 64, steps=2, rounds=2, warm=1), quiet, bandwidth=1e9)
    assert engine.model.config._attn_implementation.startswith("kvfoot_")
    assert engine.generate([[1, 2, 3, 4]], max_new_tokens=5)[0].tokens == before


def test_prefill(engine: Engine) -> None:
    full = Variant(chunk=64)
    figures = prefill(engine, Reading((full, SNAPKV), 256, rounds=2, warm=64), quiet, rate=1e9)
    sides = figures["sides"]
    linear, pairs = shapes.linear_flops(engine.model), ROWS * 256 * 257 // 2
    assert linear == 2 * 2 * (64 * (2 * 64 + 2 * 32) + 3 * 64 * 96)
    assert sides["full"]["flops"] == sides[TRANSFORMERS]["flops"] == 256 * linear + 4 * 2 * 16 * pairs
    cut = sides["snapkv keep=0.25 window=8 chunk"]
    own = ROWS * (4 * 64 * 65 // 2 + 64 * (16 + 32 + 48))
    assert cut["flops"] == 256 * linear + 4 * 2 * 16 * own
    assert cut["kv_footprint"] == pytest.approx(own / pairs)
    assert cut["trace_bytes"] == ROWS * (ENTRY + 4) * (3 * 16 + 64)
    assert cut["peak_bytes"] == ROWS * (ENTRY + 4) * 64
    assert sides["full"]["peak_bytes"] == sides[TRANSFORMERS]["peak_bytes"] == ROWS * ENTRY * 256
    for row in sides.values():
        assert row["roofline_ms"] == pytest.approx(row["flops"] / 1e9 * 1e3)
        assert row["ratio"] == pytest.approx(row["ms"] / row["roofline_ms"])
        assert row["tokens_per_second"] == pytest.approx(256 / row["ms"] * 1e3)
        assert len(row["rounds_ms"]) == 2
        assert row["above_bytes"] is None, "nothing tells on a CPU"


def test_capacity(engine: Engine) -> None:
    """A pool of 100 pages of bare entries."""
    size = 100 * 16 * ENTRY
    what = Filling((SNAPKV, Variant()), 240, steps=3, rounds=2, warm=2, kv_memory=size)
    figures = capacity(engine, what, quiet, bandwidth=1e9)
    sides = figures["sides"]
    full, cut = sides["full"], sides["snapkv keep=0.25 window=8 chunk"]
    assert (figures["kv_memory"], engine.kv_memory) == (size, None)
    assert full["sequences"] == 100 // (ROWS * 15) == 1  # 240 tokens a row
    # kept of 229: 3 chunks of 64 and one of 37 -> 57, and 11 more: 5 pages a row
    assert cut["sequences"] == 96 // (ROWS * 5) == 4
    for row in sides.values():
        consistent(row, 1e9, row["sequences"])
        assert row["held_bytes"] <= size
    assert dataclasses.replace(what, kv_memory=1.0).pool(engine.device) > size, "a fraction of what is free"
    few = dataclasses.replace(what, most=2)
    assert capacity(engine, few, quiet, bandwidth=1e9)["sides"]["snapkv keep=0.25 window=8 chunk"]["sequences"] == 2
    with pytest.raises(UsageError, match="raise --kv-memory"):
        capacity(engine, dataclasses.replace(what, kv_memory=size // 2), quiet, bandwidth=1e9)


def test_eviction(engine: Engine) -> None:
    figures = eviction(engine, Evicting(SNAPKV, 512, rounds=2), quiet)
    assert figures["chunk"] == [256, 320]
    assert figures["entries_per_row"] == 4 * 16
    assert figures["cost"] == pytest.approx(figures["with_ms"] / figures["without_ms"] - 1)
    assert [len(x) for x in figures["rounds_ms"].values()] == [2, 2]
    with pytest.raises(UsageError, match="evict=chunk"):
        eviction(engine, Evicting(Variant("snapkv", {"window": 8}, "0.25", chunk=64), 512), quiet)


def test_a_context_that_does_not_fit(engine: Engine) -> None:
    with pytest.raises(UsageError, match="8192 positions"):
        decode(engine, Decoding((Variant(),), 8193), quiet, bandwidth=1e9)
    with pytest.raises(UsageError, match="no room for a prompt beside 142 decoded tokens"):
        decode(engine, Decoding((Variant(),), 143), quiet, bandwidth=1e9)
