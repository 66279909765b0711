"""`kvfoot bench` on a CUDA device: the same bytes as on a CPU, and memory that only a device tells."""

import gc
from pathlib import Path

import pytest
import torch

from kvfoot import Engine
from kvfoot.bench import measure, shapes
from kvfoot.bench.capacity import Filling, capacity
from kvfoot.bench.decode import Decoding, decode
from kvfoot.bench.eviction import Evicting, eviction
from kvfoot.bench.prefill import Reading, prefill
from kvfoot.bench.record import BenchRecord
from kvfoot.bench.variant import TRANSFORMERS, Variant

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SNAPKV = Variant("snapkv", {"window": 16}, "0.25", evict="chunk", chunk=512)
FULL = Variant(chunk=512)
HEADS = Variant("heads", {"roles": "random", "sparsity": 0.7, "sink": 16, "window": 128}, chunk=512)
REFRESH = Variant("refreshkv", {"schedule": "fixed", "every": 4}, chunk=512)


@pytest.fixture(scope="module", params=["sdpa", "triton"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(shapes.build("smollm2", torch.bfloat16, "cuda"), name="smollm2", backend=request.param)


def quiet(line: str) -> None:
    pass


def test_rates_are_a_gpus() -> None:
    """A card that copies 100 GB/s and multiplies 10 TFLOP/s is an old one: the clock waits for the device."""
    device = torch.device("cuda")
    assert 1e11 < measure.copy_bandwidth(device, 1 << 28) < 1e13
    assert 1e13 < measure.product_rate(device, torch.bfloat16, 4096) < 1e16


def test_decode(engine: Engine, tmp_path: Path) -> None:
    what = Decoding((SNAPKV, HEADS, REFRESH, FULL), 2048, batch=2, steps=8, rounds=2, warm=8)
    figures = decode(engine, what, quiet, 1e12)
    assert figures["interleaved"]
    g, prompt = engine.geometry, 2048 - 9 - 2 * 9
    reads = [prompt + 9 + 9 * r + i + 1 for r in range(2) for i in range(1, 9)]
    dense = 2 * g.rows * g.entry_bytes(2) * sum(reads) / 16
    assert figures["sides"]["full"]["kv_bytes"] == figures["sides"][TRANSFORMERS]["kv_bytes"] == dense
    for row in figures["sides"].values():
        assert row["roofline_ms"] == pytest.approx((row["weights_bytes"] + row["kv_bytes"]) / 1e9)
        assert row["ratio"] > 0
    record = BenchRecord.of("decode", "here", engine, what.settings(), figures)
    record.save(tmp_path / "record.json")
    read = BenchRecord.from_json((tmp_path / "record.json").read_text())
    assert read.device["type"] == "cuda"
    assert "triton" in read.packages


def test_prefill_tells_what_lies_beside_the_cache(engine: Engine) -> None:
    figures = prefill(engine, Reading((FULL, SNAPKV), 4096, rounds=2, warm=512), quiet, 1e12)
    for row in figures["sides"].values():
        assert 0 < row["above_bytes"] < 4 << 30
    assert figures["sides"]["full"]["above_bytes"] < figures["sides"][TRANSFORMERS]["above_bytes"]


def test_capacity_and_eviction(engine: Engine) -> None:
    """What is measured is given back: a pool of 1 GiB that stayed would show, whatever other processes hold."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    sides = capacity(engine, Filling((SNAPKV, FULL), 2048, 4, 2, 4, 1 << 30), quiet, 1e12)["sides"]
    assert sides["snapkv keep=0.25 window=16 chunk"]["sequences"] > 3 * sides["full"]["sequences"] > 0
    assert eviction(engine, Evicting(SNAPKV, 4096, rounds=2), quiet)["cost"] > -0.5
    gc.collect()
    assert torch.cuda.memory_allocated() < before + (256 << 20)
