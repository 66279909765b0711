"""The parts of each row into one result, by log-sum-exp (decision D4; state.merge over all of a row's parts).

And, in the same launch, the logits that decode has emitted into softmax weights (naive_paged.weights): programs beyond
those of the result take a block of a row's entries each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.state import State
from kvfoot.attention.triton import common
from kvfoot.attention.triton.plan import Plan

BLOCK = 1024
"""Entries whose weights a program writes."""


@triton.jit
def merge_kernel(
    part,
    part_lse,
    tiles,
    out,
    out_lse,
    rows,
    programs,
    score,
    lens,
    score_row,
    score_head,
    width,
    G: tl.constexpr,
    D: tl.constexpr,
    DB: tl.constexpr,
    BS: tl.constexpr,
    LN2: tl.constexpr,
    RESULTS: tl.constexpr,
    BN: tl.constexpr,
):
    row = tl.program_id(0)
    g = tl.program_id(1)
    block = tl.program_id(2)
    share = tl.maximum(tl.cdiv(tl.load(tiles + rows), programs), 1)
    begin = tl.load(tiles + row)
    end = tl.load(tiles + row + 1)
    low = begin // share
    high = tl.where(end > begin, (end - 1) // share + 1, low)
    m = tl.full([1], -float("inf"), tl.float32)
    l = tl.zeros([1], tl.float32)
    if block < RESULTS:
        d = block * DB + tl.arange(0, DB)
        acc = tl.zeros([DB], tl.float32)
        for at in range(low, high, BS):
            p = at + tl.arange(0, BS)
            ok = p < high
            slot = (p + row).to(tl.int64) * G + g
            lse = tl.load(part_lse + slot, mask=ok, other=-float("inf"))
            o = tl.load(part + slot[:, None] * D + d[None, :], mask=ok[:, None] & (d[None, :] < D), other=0.0)
            m_new = tl.maximum(m, tl.max(lse, 0))
            a = tl.exp2(m - m_new)
            w = tl.exp2(lse - m_new)
            acc = acc * a + tl.sum(o * w[:, None], 0)
            l = l * a + tl.sum(w, 0)
            m = m_new
        some = l > 0.0
        head = row.to(tl.int64) * G + g
        value = acc / tl.where(some, l, 1.0)
        tl.store(out + head * D + d, value.to(out.dtype.element_ty), mask=d < D)
        if block == 0:
            lse = tl.where(some, (m + tl.log2(tl.where(some, l, 1.0))) * LN2, -float("inf"))
            tl.store(out_lse + head + tl.arange(0, 1), lse)
    elif BN > 0:
        for at in range(low, high, BS):
            p = at + tl.arange(0, BS)
            slot = (p + row).to(tl.int64) * G + g
            lse = tl.load(part_lse + slot, mask=p < high, other=-float("inf"))
            m_new = tl.maximum(m, tl.max(lse, 0))
            l = l * tl.exp2(m - m_new) + tl.sum(tl.exp2(lse - m_new), 0)
            m = m_new
        norm = tl.where(l > 0.0, m + tl.log2(tl.where(l > 0.0, l, 1.0)), 0.0)
        j = (block - RESULTS) * BN + tl.arange(0, BN)
        where = score + row.to(tl.int64) * score_row + g.to(tl.int64) * score_head + j
        s = tl.load(where, mask=j < tl.load(lens + row).to(tl.int32), other=-float("inf"))
        tl.store(where, tl.exp2(s - norm), mask=j < width)


def merge(
    part: Tensor,
    part_lse: Tensor,
    plan: Plan,
    dtype: torch.dtype,
    score_RHm: Tensor | None = None,
    lens_R: Tensor | None = None,
) -> State:
    """part fp32 [programs + R, H, D] with base-2 part_lse [programs + R, H], at slot program + row, of one layer.

    score_RHm: in place, base-2 logits of a row's first lens_R entries to weights, 0 beyond.
    """
    slots, H, D = part.shape
    R = slots - plan.programs
    out = common.result((R, H, D), dtype, part.device)
    lse = common.scratch((R, H), torch.float32, part.device)
    wide = min(common.padded(D), 64)
    results, width = triton.cdiv(D, wide), 0 if score_RHm is None else score_RHm.shape[2]
    merge_kernel[(R, H, results + triton.cdiv(width, BLOCK))](
        part,
        part_lse,
        plan.tiles,
        out,
        lse,
        R,
        plan.programs,
        part if score_RHm is None else score_RHm,
        plan.tiles if lens_R is None else lens_R,
        0 if score_RHm is None else score_RHm.stride(0),
        0 if score_RHm is None else score_RHm.stride(1),
        width,
        G=H,
        D=D,
        DB=wide,
        BS=64,
        LN2=common.LN2,
        RESULTS=results,
        BN=BLOCK if width else 0,
        num_warps=4,
    )
    return State(out.to(dtype), lse)
