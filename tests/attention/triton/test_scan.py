"""Logits of whole rows, with values and without, against the definitions; what can be asked of them."""

import pytest
import torch
from paged import DEVICE, close, make

from kvfoot.attention import emitted as plain_way
from kvfoot.attention import naive_paged
from kvfoot.attention.triton import select
from kvfoot.attention.triton.decode import planned
from kvfoot.attention.triton.emitted import emitted

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize(
    ("D", "G", "page", "dtype", "lens"),
    [
        (64, 7, 16, BF16, [33, 1, 0, 0, 70]),
        (80, 5, 32, FP16, [0, 31, 32, 33, 1]),
        (128, 4, 16, FP32, [100, 1, 49]),
        (256, 2, 64, FP32, [65, 0, 1]),
    ],
)
def test_logits_and_weights(D: int, G: int, page: int, dtype: torch.dtype, lens: list[int], values: bool) -> None:
    """As attention/emitted.py has them; behind a row's end the kernel leaves what was there."""
    x = make(lens, D, G, page, dtype)
    given = (x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale)
    state, found = emitted(*given, planned(x.lens[None], D, dtype), values)
    plain, expected = plain_way.emitted(*given, values=values)
    assert close(state.lse, plain.lse, FP32)
    if values:
        assert close(state.out, plain.out, dtype)
    assert close(found.logits(), expected.logits(), FP32)
    width = x.table.shape[1] * page
    weights = naive_paged.weights(x.q[:, :, 0], x.k, x.table, x.lens, x.scale, width)
    assert close(found.weights(), weights, FP32)
    assert close(expected.weights(), weights, FP32)
    few = torch.tensor([2, 0], device=DEVICE)
    assert torch.equal(found.of(few).weights(), found.weights()[few])
    assert torch.equal(found.of(slice(1, 3)).weights(), found.weights()[1:3])


def test_what_a_kernel_does_not_choose() -> None:
    x = make([40, 33], 64, 2, 16, FP32)
    _, found = emitted(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale, None, False)
    assert found.best(8, 7, "mean", 0, 4) is None
    assert found.best(8, 7, "max", 0, None) is None
    assert found.best(8, select.WIDEST + 2, "max", 0, 4) is None
    chosen = found.best(8, 7, "max", 0, 4)
    assert chosen is not None
    assert chosen.shape == (2, 9)
