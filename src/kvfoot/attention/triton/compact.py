"""Survivors of every row into fresh pages, in the order given (naive_paged.compact): eviction's one copy."""

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common
from kvfoot.attention.triton.append import words


@triton.jit
def compact_kernel(
    pages_a,
    pages_b,
    table,
    kept,
    count,
    target,
    table_pitch,
    kept_pitch,
    target_pitch,
    W: tl.constexpr,
    WP: tl.constexpr,
    PAGE: tl.constexpr,
    BN: tl.constexpr,
    PAIR: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BN + tl.arange(0, BN)
    ok = i < tl.load(count + row).to(tl.int32)
    j = tl.load(kept + row * kept_pitch + i, mask=ok, other=0).to(tl.int32)
    page = tl.load(table + row * table_pitch + j // PAGE, mask=ok, other=0).to(tl.int64)
    fresh = tl.load(target + row * target_pitch + i // PAGE, mask=ok, other=0).to(tl.int64)
    w = tl.arange(0, WP)
    inside = ok[:, None] & (w[None, :] < W)
    old = (page * PAGE + j % PAGE)[:, None] * W + w[None, :]
    new = (fresh * PAGE + i % PAGE)[:, None] * W + w[None, :]
    a = tl.load(pages_a + old, mask=inside)
    if PAIR:
        b = tl.load(pages_b + old, mask=inside)
    tl.store(pages_a + new, a, mask=inside)
    if PAIR:
        tl.store(pages_b + new, b, mask=inside)


def compact(pages: tuple[Tensor, ...], table_RP: Tensor, kept_RC: Tensor, count_R: Tensor, target_RQ: Tensor) -> None:
    """Entry kept_RC[r, i] becomes entry i of the pages target_RQ[r], for i < count_R[r].

    One plane, or two of one width in a launch. No page may be both source and target: programs run in any order.
    """
    common.pages(*pages)
    a, b = words(pages[0]), words(pages[-1])
    R, most = kept_RC.shape
    width = a.shape[2]
    block = 32 if width > 1 else 256
    compact_kernel[(R, triton.cdiv(most, block))](
        a,
        b,
        table_RP,
        kept_RC,
        count_R,
        target_RQ,
        table_RP.stride(0),
        kept_RC.stride(0),
        target_RQ.stride(0),
        W=width,
        WP=common.padded(width, 1),
        PAGE=a.shape[1],
        BN=block,
        PAIR=len(pages) == 2,
        num_warps=4,
    )
