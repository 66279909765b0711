"""Long chunks by a library's attention: for which work it is chosen, and parts that join. cuDNN is the CPU's here."""

from typing import Any

import pytest
import torch
from paged import DEVICE, close
from torch import Tensor

import tiny
from kvfoot.attention import naive
from kvfoot.attention.state import State, merge
from kvfoot.attention.triton import fused, load
from kvfoot.attention.triton.join import join

BF16, FP32 = torch.bfloat16, torch.float32


def queries(R: int, H: int, n: int, D: int, dtype: torch.dtype = FP32, seed: int = 0) -> Tensor:
    """As a model has them: heads inside a token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, R, H, D, generator=generator).to(DEVICE, dtype).permute(1, 2, 0, 3)


def entries(R: int, m: int, D: int, dtype: torch.dtype = FP32, seed: int = 1) -> Tensor:
    return torch.randn(R, m, D, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize(("R", "H", "n", "m"), [(3, 1, 5, 5), (2, 7, 33, 20), (1, 4, 16, 64)])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_parts_join(R: int, H: int, n: int, m: int, dtype: torch.dtype) -> None:
    q, k, v = queries(R, H, n, 80, dtype), entries(R, m, 80, dtype), entries(R, m, 80, dtype, 2)
    whole = naive.attend(q, k, v, 0.2, False)
    parts = [naive.attend(q, k[:, x], v[:, x], 0.2, False) for x in (slice(0, 3), slice(3, m))]
    a, b = (State(p.out.to(dtype), p.lse) for p in parts)
    found = join(a, b, dtype)
    assert (found.out.dtype, found.lse.dtype) == (dtype, FP32)
    assert close(found.out, whole.out, dtype)
    assert close(found.lse, whole.lse, FP32)
    assert found.out.permute(2, 0, 1, 3).is_contiguous()
    wide = join(a, b, FP32)
    assert wide.out.dtype == FP32
    assert close(wide.out, merge(a, b).out, FP32)


def test_an_empty_part_changes_nothing() -> None:
    q, k, v = queries(2, 3, 9, 64), entries(2, 5, 64), entries(2, 5, 64, seed=2)
    some = naive.attend(q, k, v, 0.2, False)
    none = State(torch.zeros_like(some.out), torch.full_like(some.lse, -torch.inf))
    for a, b in ((some, none), (none, some)):
        found = join(a, b, FP32)
        assert close(found.out, some.out, FP32)
        assert close(found.lse, some.lse, FP32)
    both = join(none, none, FP32)
    assert torch.equal(both.out, none.out)
    assert torch.equal(both.lse, none.lse)


def test_normalisers_far_apart() -> None:
    one, two = (torch.full((1, 1, 4, 64), x, device=DEVICE) for x in (1.0, 5.0))
    far = [torch.full((1, 1, 4), x, device=DEVICE) for x in (900.0, 700.0)]
    found = join(State(one, far[0]), State(two, far[1]), FP32)
    assert torch.equal(found.out, one)
    assert torch.equal(found.lse, far[0])


def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares and blocks of chunks that recur; single long prompts; nothing where torch would not take cuDNN."""
    x = torch.empty(1, device="meta")

    def suits(n: int, m: int, causal: bool) -> bool:
        return fused.suits(x.expand(8, 4, n, 128), x.expand(8, m, 128), causal)

    asked: list[bool] = []
    monkeypatch.setattr(fused, "available", lambda q, k: asked.append(True) or True)
    assert suits(8192, 8192, True)
    assert suits(4096, 4096, True)
    assert suits(50_001, 50_001, True)
    assert suits(8192, 8192, False)
    assert suits(8192, 32768, False)
    assert len(asked) == 5
    assert not suits(5000, 5000, True)
    assert not suits(2048, 2048, True)
    assert not suits(8192, 16384, True), "history and chunk at once"
    assert not suits(8192, 1152, False)
    assert not suits(512, 2048, False)
    assert len(asked) == 5, "torch is not asked about short work"
    monkeypatch.setattr(fused, "available", lambda q, k: False)
    assert not suits(8192, 8192, True)
    assert not suits(8192, 32768, False)


@pytest.mark.parametrize("choice", [0, 1, 2, 3])
def test_torch_itself_decides_what_there_is(choice: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def chosen(*tensors: Tensor, **named: Any) -> int:
        seen.append(([x.shape for x in tensors], named))
        return choice

    monkeypatch.setattr(torch, "_fused_sdp_choice", chosen)
    assert fused.available(queries(2, 3, 5, 64), entries(2, 5, 64)) == (choice == 3)
    assert seen == [([(1, 6, 5, 64), (1, 2, 5, 64), (1, 2, 5, 64)], {"enable_gqa": True})]


@pytest.mark.skipif(DEVICE == "cuda", reason="about a machine without cuDNN")
def test_a_cpu_has_none() -> None:
    assert not fused.available(queries(2, 3, 5, 64), entries(2, 5, 64))
    assert not load().piecewise(queries(2, 3, 8192, 64), entries(2, 8192, 64))


@pytest.mark.skipif(DEVICE == "cuda", reason="a stand-in; cuDNN: tests/gpu/test_long_chunks.py")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("R", "H", "D"), [(1, 7, 64), (2, 3, 80), (3, 1, 96), (2, 4, 128), (2, 2, 256)])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_attend(R: int, H: int, D: int, causal: bool, dtype: torch.dtype) -> None:
    n, m = 24, 24 if causal else 96
    q, k, v = queries(R, H, n, D, dtype), entries(R, m, D, dtype), entries(R, m, D, dtype, 2)
    found, expected = fused.attend(q, k, v, 0.1, causal), naive.attend(q, k, v, 0.1, causal)
    assert close(found.out, expected.out, dtype)
    assert (found.lse - expected.lse).abs().max() < 1e-3
    if R > 1:  # a row of several, as it lies among them
        one = fused.attend(q[1:2], k[1:2], v[1:2], 0.1, causal)
        assert close(one.out, expected.out[1:2], dtype)
        assert (one.lse - expected.lse[1:2]).abs().max() < 1e-3


def test_torch_takes_the_call() -> None:
    """The device "meta" knows cuDNN's operation, without numbers: out lies as the queries do, one lse a query."""
    meta = {"device": "meta", "dtype": BF16}
    q = torch.empty(1, 8192, 32, 128, **meta).transpose(1, 2)[0].view(8, 4, 8192, 128)
    k = torch.empty(1, 8192, 8, 128, **meta).transpose(1, 2)[0]
    whole = fused.attend(q, k, k, 0.1, True)
    assert whole.out.stride() == q.stride()
    assert (whole.lse.shape, whole.lse.dtype) == ((8, 4, 8192), FP32)
    blocks = torch.empty(1, 32768, 128, **meta)
    one = fused.attend(q[3:4], blocks, blocks, 0.1, False)
    assert (one.out.shape, one.out.dtype, one.lse.shape) == ((1, 4, 8192, 128), BF16, (1, 4, 8192))
    assert one.out.permute(2, 0, 1, 3).is_contiguous()


def test_a_batch_of_one_strides_as_memory_of_its_own() -> None:
    """cuDNN's plans know strides: a head's block has the same wherever it lies, and so have a span's queries."""
    tall = torch.empty(3, 4096, 64)
    assert fused.whole(tall[1:2, :512]).stride() == fused.whole(tall[2:3, 1024:1536]).stride()
    packed = torch.empty(1, 700, 8, 64).transpose(1, 2)[0]
    assert fused.whole(packed[:, :512]).stride() == torch.empty(1, 512, 8, 64).transpose(1, 2).stride()
    assert fused.whole(packed[4:8, 100:612]).stride() == (512 * 8 * 64, 64, 8 * 64, 1)


def plans(model: Any, length: int, monkeypatch: pytest.MonkeyPatch, **run: Any) -> tuple[Any, set[Any], int]:
    """Tokens of a run of the triton backend with chunks of 16 in pieces, what cuDNN would plan, and its calls."""
    seen: list[Any] = []
    with monkeypatch.context() as m:
        m.setattr(fused, "QUERIES", 16)
        m.setattr(fused, "EVEN", 16)
        m.setattr(fused, "available", lambda q, k: True)

        def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> State:
            every = [fused.whole(x) for x in (q.flatten(0, 1), k, v)]
            seen.append((*((x.shape, x.stride()) for x in every), causal))
            return real(q, k, v, scale, causal)

        real = fused.attend
        m.setattr(fused, "attend", attend)
        engine = tiny.Strict(model, backend="triton")
        seen.clear()
        found = engine.generate([tiny.tokens(length)], chunk=16, max_new_tokens=2, **run)[0]
    return found, set(seen), len(seen)


RUNS: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "snapkv", "keep": 0.5, "evict": "chunk", "options": {"window": 4}},
    {"method": "heads", "options": {"roles": "100/011", "sink": 2, "window": 6}},
]


@pytest.mark.skipif(DEVICE == "cuda", reason="the CPU's attention in place of cuDNN's")
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["method"])
def test_whole_runs(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The sdpa backend's tokens; and a longer prompt asks for no plan that a shorter one has not asked for."""
    model = tiny.make(layers=2, kv_heads=3, group=2, head_dim=64)
    found, few, calls = plans(model, 101, monkeypatch, **run)
    expected = tiny.Strict(model, backend="sdpa").generate([tiny.tokens(101)], chunk=16, max_new_tokens=2, **run)[0]
    assert found.tokens == expected.tokens
    assert found.record.footprint == expected.record.footprint
    _, many, more = plans(model, 165, monkeypatch, **run)
    assert more > calls
    assert many == few or (run["method"] == "snapkv" and len(many) <= 3)
    assert len(few) <= 3
