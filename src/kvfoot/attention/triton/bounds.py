"""Bounds of the keys of pages (naive_bounds.py): what they reach with a query, read once, and a new key among them.

An eighth of the keys' bytes at 16 entries a page. Of products of bounds with queries only the joined ones are written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common
from kvfoot.attention.triton.common import fetch

TILE = 1 << 14
"""Bytes of either bound that a program reads."""


@triton.jit
def reach_kernel(
    q,
    low,
    high,
    lens,
    found,
    count,
    pitch,
    q_row,
    q_head,
    PAGE: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BP: tl.constexpr,
    MEAN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    n = tl.load(lens + row).to(tl.int32)
    ok = p < (n - 1) // PAGE
    s_P = tl.full([BP], -float("inf"), tl.float32)
    if tl.program_id(1) * BP * PAGE < n:
        g = tl.arange(0, GP)
        offset = row * pitch + p.to(tl.int64) * D
        q_GD = fetch(q, row * q_row + g.to(tl.int64) * q_head, g < G, D, DP, UPCAST)
        zero = tl.zeros_like(q_GD)
        high_PD = fetch(high, offset, ok, D, DP, UPCAST)
        s = tl.dot(tl.where(q_GD > 0, q_GD, zero), tl.trans(high_PD), input_precision=PRECISION)
        low_PD = fetch(low, offset, ok, D, DP, UPCAST)
        s += tl.dot(tl.where(q_GD < 0, q_GD, zero), tl.trans(low_PD), input_precision=PRECISION)
        if MEAN:
            s = tl.sum(tl.where(g[:, None] < G, s, 0.0), 0) / G
        else:
            s = tl.max(tl.where(g[:, None] < G, s, -float("inf")), 0)
        s_P = tl.where(ok, s, s_P)
    tl.store(found + row * count + p, s_P, mask=p < count)


@triton.jit
def widen_kernel(low, high, k, slots, lens, pitch, PAGE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    n = tl.load(lens + row).to(tl.int32)
    if n > 0:
        d = tl.arange(0, DP)
        inside = d < D
        key = tl.load(k + tl.load(slots + row).to(tl.int64) * D + d, mask=inside).to(tl.float32)
        to = row * pitch + ((n - 1) // PAGE).to(tl.int64) * D + d
        first = (n - 1) % PAGE == 0
        least, most = tl.load(low + to, mask=inside).to(tl.float32), tl.load(high + to, mask=inside).to(tl.float32)
        tl.store(low + to, tl.where(first, key, tl.minimum(least, key)), mask=inside)
        tl.store(high + to, tl.where(first, key, tl.maximum(most, key)), mask=inside)


def reach(q_RHD: Tensor, low_RPD: Tensor, high_RPD: Tensor, lens_R: Tensor, page: int, mean: bool) -> Tensor:
    """See naive_bounds.reach."""
    (R, H, D), P = q_RHD.shape, low_RPD.shape[1]
    common.check(q_RHD, low_RPD, None, H)
    q, low, high = common.unit(q_RHD), low_RPD.contiguous(), high_RPD.contiguous()
    found = common.scratch((R, P), torch.float32, q.device)
    width = common.padded(D)
    block = max(16, TILE // (width * low.dtype.itemsize))
    reach_kernel[(R, triton.cdiv(P, block))](
        q,
        low,
        high,
        lens_R,
        found,
        P,
        low.stride(0),
        q.stride(0),
        q.stride(1),
        PAGE=page,
        G=H,
        GP=common.padded(H),
        D=D,
        DP=width,
        BP=block,
        MEAN=mean,
        PRECISION=common.precision(low.dtype, D),
        UPCAST=common.upcast(low.dtype),
        num_warps=4,
    )
    return found


def widen(low_RPD: Tensor, high_RPD: Tensor, k_pages: Tensor, slots_R: Tensor, lens_R: Tensor, page: int) -> None:
    """See naive_bounds.widen."""
    R, _, D = low_RPD.shape
    common.pages(k_pages, low_RPD, high_RPD)
    widen_kernel[(R,)](
        low_RPD,
        high_RPD,
        k_pages,
        slots_R,
        lens_R,
        low_RPD.stride(0),
        PAGE=page,
        D=D,
        DP=common.padded(D),
        num_warps=1 if D <= 64 else 4,
    )
