"""Two parts of the same queries' attention into one (state.merge), a read of each and one write."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.state import State
from kvfoot.attention.triton import common


@triton.jit
def join_kernel(
    a,
    a_lse,
    b,
    b_lse,
    out,
    out_lse,
    n,
    H,
    a_row,
    a_head,
    a_query,
    b_row,
    b_head,
    b_query,
    out_row,
    out_head,
    out_query,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    both = tl.program_id(1).to(tl.int64)
    row, head = both // H, both % H
    ok = i < n
    d = tl.arange(0, DP)
    inside = ok[:, None] & (d[None, :] < D)
    wide = i.to(tl.int64)[:, None]
    x = tl.load(a + row * a_row + head * a_head + wide * a_query + d[None, :], mask=inside, other=0.0).to(tl.float32)
    y = tl.load(b + row * b_row + head * b_head + wide * b_query + d[None, :], mask=inside, other=0.0).to(tl.float32)
    x_lse = tl.load(a_lse + both * n + i, mask=ok, other=0.0)
    y_lse = tl.load(b_lse + both * n + i, mask=ok, other=0.0)
    top = tl.maximum(x_lse, y_lse)
    base = tl.where(top == -float("inf"), 0.0, top)
    u = tl.exp(x_lse - base)
    w = tl.exp(y_lse - base)
    some = u + w > 0.0
    total = tl.where(some, u + w, 1.0)
    z = (x * u[:, None] + y * w[:, None]) / total[:, None]
    at = out + row * out_row + head * out_head + wide * out_query + d[None, :]
    tl.store(at, z.to(out.dtype.element_ty), mask=inside)
    tl.store(out_lse + both * n + i, tl.where(some, base + tl.log(total), -float("inf")), mask=ok)


def join(a: State, b: State, dtype: torch.dtype) -> State:
    """See pieces.join. out lies query by query, as the layer's output does."""
    R, H, n, D = a.out.shape
    x, y = common.unit(a.out), common.unit(b.out)
    out = common.result((n, R, H, D), dtype, x.device).permute(1, 2, 0, 3)
    lse = common.scratch((R, H, n), torch.float32, x.device)
    block = 32
    strides = [s for part in (x, y, out) for s in _strides(part)]
    join_kernel[(triton.cdiv(n, block), R * H)](
        x, a.lse.contiguous(), y, b.lse.contiguous(), out, lse, n, H, *strides,
        D=D, DP=common.padded(D), BM=block, num_warps=4,
    )  # fmt: skip
    return State(out.to(dtype), lse)


def _strides(x: Tensor) -> tuple[int, ...]:
    return x.stride()[:3]
