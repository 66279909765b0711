"""The parts of each row into one result, by log-sum-exp (decision D4; state.merge over all of a row's parts)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.state import State
from kvfoot.attention.triton import common
from kvfoot.attention.triton.plan import Plan


@triton.jit
def merge_kernel(
    part,
    part_lse,
    tiles,
    out,
    out_lse,
    rows,
    programs,
    G: tl.constexpr,
    D: tl.constexpr,
    DB: tl.constexpr,
    BS: tl.constexpr,
    LN2: tl.constexpr,
):
    row = tl.program_id(0)
    g = tl.program_id(1)
    d = tl.program_id(2) * DB + tl.arange(0, DB)
    share = tl.maximum(tl.cdiv(tl.load(tiles + rows), programs), 1)
    begin = tl.load(tiles + row)
    end = tl.load(tiles + row + 1)
    low = begin // share
    high = tl.where(end > begin, (end - 1) // share + 1, low)
    m = tl.full([1], -float("inf"), tl.float32)
    l = tl.zeros([1], tl.float32)
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
    at = row.to(tl.int64) * G + g
    value = acc / tl.where(some, l, 1.0)
    tl.store(out + at * D + d, value.to(out.dtype.element_ty), mask=d < D)
    if tl.program_id(2) == 0:
        lse = tl.where(some, (m + tl.log2(tl.where(some, l, 1.0))) * LN2, -float("inf"))
        tl.store(out_lse + at + tl.arange(0, 1), lse)


def merge(part: Tensor, part_lse: Tensor, plan: Plan, dtype: torch.dtype) -> State:
    """part fp32 [programs + R, H, D] with base-2 part_lse [programs + R, H], at slot program + row, of one layer."""
    slots, H, D = part.shape
    R = slots - plan.programs
    out = common.result((R, H, D), dtype, part.device)
    lse = common.scratch((R, H), torch.float32, part.device)
    wide = min(common.padded(D), 64)
    merge_kernel[(R, H, triton.cdiv(D, wide))](
        part,
        part_lse,
        plan.tiles,
        out,
        lse,
        R,
        plan.programs,
        G=H,
        D=D,
        DB=wide,
        BS=64,
        LN2=common.LN2,
        num_warps=4,
    )
    return State(out.to(dtype), lse)
