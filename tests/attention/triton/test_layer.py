"""What a decoder layer does around attention: kernels against their definitions, and those against torch's own order.

bf16 is compared bit for bit where the order of a sum does not enter: roundings are part of the definition.
"""

from typing import Any

import pytest
import torch
from paged import DEVICE, ULP
from torch import Tensor

from kvfoot.attention import naive_layer
from kvfoot.attention.naive_layer import Target, Turn
from kvfoot.attention.triton import layer
from kvfoot.models.fusion import WIDEST

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [BF16, FP16, FP32]


def draw(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE, dtype)


def ulps(a: Tensor, b: Tensor) -> int:
    """The most steps of the dtype between two tensors."""
    kind = {2: torch.int16, 4: torch.int32}[a.element_size()]
    bits = [x.view(kind).long() for x in (a, b)]
    low = -(1 << (8 * a.element_size() - 1))
    x, y = (torch.where(n < 0, low - n, n) for n in bits)
    return int((x - y).abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "N"), [(1, 48), (3, 4096), (7, 80), (2, 1000)])
@pytest.mark.parametrize(("round_first", "plus"), [(True, 0.0), (False, 0.0), (False, 1.0)])
def test_rms_norm(rows: int, N: int, dtype: torch.dtype, round_first: bool, plus: float) -> None:
    """Llama's, OLMo-2's and Gemma-3's; rows of heads, of a view with strides, of zeros."""
    wide = draw(2, rows, N + 3, dtype=dtype) * 5
    weight = draw(N, dtype=dtype, seed=1)
    for x in (wide[:1, :, :N], wide[1, :, 2 : N + 2], torch.zeros_like(wide[:1, :, :N])):
        options: dict[str, Any] = {"round_first": round_first, "plus": plus}
        found, expected = (f(x, weight, 1e-5, **options) for f in (layer.rms_norm, naive_layer.rms_norm))
        assert found.shape == x.shape
        assert found.dtype == dtype
        assert ulps(found, expected) <= (8 if dtype == FP32 else 1 + round_first)
        assert dtype == FP32 or (found != expected).float().mean() < 0.01


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "N"), [((1, 1), 14336), ((1, 5), 96), ((3,), 1025)])
def test_gated(shape: tuple[int, ...], N: int, dtype: torch.dtype) -> None:
    """Two tensors, halves of one, and gates beyond what exp holds."""
    both = draw(*shape, 2 * N, dtype=dtype) * 4
    both[..., :4] = torch.tensor([-300.0, 300.0, 0.0, -60.0], device=DEVICE)
    gate, up = both.chunk(2, -1)
    expected = naive_layer.gated(gate, up)
    plain = torch.nn.functional.silu(gate) * up
    for g, u in ((gate, up), (gate.contiguous(), up.contiguous())):
        found = layer.gated(g, u)
        assert found.shape == gate.shape
        for other in (expected, plain):
            assert torch.allclose(found.float(), other.float(), rtol=ULP[dtype] / 2, atol=1e-30)
            assert dtype == FP32 or (found != other).float().mean() < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "sizes"), [(48, (48, 16, 16)), (4096, (24, 8, 16)), (1512, (8, 40)), (2048, (16,))])
@pytest.mark.parametrize("biased", [False, True])
def test_project(K: int, sizes: tuple[int, ...], dtype: torch.dtype, biased: bool) -> None:
    """One, two and three weights, rows that are no multiple of a tile; against torch's own product too."""
    x = draw(1, 1, K, dtype=dtype)
    weights = [draw(n, K, dtype=dtype, seed=i) / K**0.5 for i, n in enumerate(sizes)]
    biases = [draw(n, dtype=dtype, seed=9) for n in sizes] if biased else None
    found, expected = (f(x, weights, biases) for f in (layer.project, naive_layer.project))
    plain = [torch.nn.functional.linear(x, w, biases[i] if biases else None) for i, w in enumerate(weights)]
    for y, *others in zip(found, expected, plain, strict=True):
        for other in others:
            assert y.shape == other.shape
            assert torch.allclose(y.float(), other.float(), rtol=ULP[dtype], atol=ULP[dtype])
    assert dtype == FP32 or (torch.cat(found, -1) != torch.cat(expected, -1)).float().mean() < 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "N"), [(48, 96), (4096, 24), (1512, 8)])
def test_gated_project(K: int, N: int, dtype: torch.dtype) -> None:
    """Two weights, and the halves of one."""
    x, both = draw(1, 1, K, dtype=dtype), draw(2 * N, K, dtype=dtype) * 2 / K**0.5
    expected = naive_layer.gated_project(x, *both.chunk(2))
    found = layer.gated_project(x, *both.chunk(2))
    assert found.shape == expected.shape == (1, 1, N)
    assert torch.allclose(found.float(), expected.float(), rtol=2 * ULP[dtype], atol=ULP[dtype])


def case(B: int, G: int, H: int, D: int, dtype: torch.dtype, angles: torch.dtype) -> tuple[Any, ...]:
    """q, k, v as a projection leaves them, cosines and sines, slots in any order, an arena of NaN."""
    packed = draw(1, B, (G * H + 2 * G) * D, dtype=dtype)
    q, k, v = (x.view(1, B, -1, D).transpose(1, 2) for x in packed.split([G * H * D, G * D, G * D], -1))
    turn = Turn(draw(1, B, D, dtype=angles, seed=1), draw(1, B, D, dtype=angles, seed=2))
    pages = torch.full((B * G + 3, 16, D), torch.nan, device=DEVICE, dtype=dtype)
    slots = torch.randperm(16 * len(pages), generator=torch.Generator().manual_seed(B))[: B * G].to(DEVICE)
    at = torch.arange(B, device=DEVICE) * 7 + 3
    return q, k, v, turn, slots, at, pages


@pytest.mark.parametrize(
    ("dtype", "angles"), [(BF16, BF16), (FP16, FP16), (FP32, FP32), (BF16, FP32), (FP16, FP32)], ids=str
)
@pytest.mark.parametrize(("B", "G", "H", "D"), [(1, 8, 4, 128), (3, 2, 3, 64), (2, 3, 1, 80), (5, 1, 7, 96)])
@pytest.mark.parametrize(("rotated", "placed"), [(True, True), (True, False), (False, True)])
def test_store(
    B: int, G: int, H: int, D: int, dtype: torch.dtype, angles: torch.dtype, rotated: bool, placed: bool
) -> None:
    """Equal bit for bit, whatever lies around the slots."""
    q, k, v, turn, slots, at, pages = case(B, G, H, D, dtype, angles)
    planes, rows = [], []
    for store in (layer.store, naive_layer.store):
        target = Target(
            pages.clone(), pages.clone(), torch.full((len(pages), 16, 1), -7, dtype=torch.int32, device=DEVICE)
        )
        given = target if placed else Target(target.k, target.v, None)
        rows.append(store(q, k, v, turn if rotated else None, slots, at, given))
        planes.append(target)
    mine, theirs = planes
    assert rows[0].shape == (B * G, H, D)
    assert ulps(rows[0], rows[1]) == 0
    for name in ("k", "v", "positions"):
        a, b = getattr(mine, name), getattr(theirs, name)
        assert torch.equal(a.nan_to_num(9e4), b.nan_to_num(9e4)), name
    assert (mine.positions != -7).sum() == B * G * placed


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_definition_is_torchs_order_of_rounding(dtype: torch.dtype) -> None:
    """Rotation as models write it: a product, a product, a sum, each in the dtype."""
    q, k, v, turn, slots, at, pages = case(3, 2, 3, 64, dtype, dtype)
    target = Target(pages.clone(), pages.clone(), None)
    found = layer.store(q, k, v, turn, slots, at, target)
    cos, sin = turn.cos[:, None], turn.sin[:, None]
    half = torch.cat([-q[..., 32:], q[..., :32]], -1)
    expected = (q * cos) + (half * sin)
    assert torch.equal(found, expected[0].view(2, 3, 3, 64).permute(2, 0, 1, 3).flatten(0, 1))


def test_roundings_of_bf16_are_to_nearest_even() -> None:
    """silu of a large number is itself. Halfway products go up and down to what is even: 96.75, 81.25, 199.5, 193.5."""
    gate, up = torch.tensor([[96.0, 80.0, 66.5, 192.0], [1.0078125, 1.015625, 3.0, 1.0078125]]).to(DEVICE, BF16)
    assert layer.gated(gate[None], up[None]).tolist() == [[97.0, 81.0, 200.0, 194.0]]


def test_the_widest_norm() -> None:
    x, weight = draw(1, WIDEST, dtype=BF16), draw(WIDEST, dtype=BF16, seed=3)
    assert ulps(*(f(x, weight, 1e-6, round_first=True) for f in (layer.rms_norm, naive_layer.rms_norm))) <= 2
