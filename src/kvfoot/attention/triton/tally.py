"""A decode step's attention mass per entry, and the least of each block of entries (overwrite.tally).

Reads the logits that decode emitted, with the normaliser of their head: no weights are written. replace.py takes the
least of the blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.state import Least
from kvfoot.attention.triton import common

BLOCK = 512


@triton.jit
def tally_kernel(
    score,
    lse,
    table,
    lens,
    fence,
    position,
    mass,
    value,
    index,
    score_row,
    score_head,
    table_pitch,
    unit,
    G: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    BN: tl.constexpr,
    LOG2E: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * unit
    block = tl.program_id(1)
    j = block * BN + tl.arange(0, BN)
    n = tl.load(lens + first).to(tl.int32)
    ok = j < n
    page = tl.load(table + first * table_pitch + j // PAGE, mask=ok, other=0).to(tl.int64)
    slot = page * PAGE + j % PAGE
    total = tl.zeros([BN], tl.float32)
    for r in range(0, unit):
        row = first + r
        for g in tl.static_range(G):
            norm = tl.where(n > 0, tl.load(lse + row * G + g) * LOG2E, 0.0)
            s = tl.load(score + row * score_row + g * score_head + j, mask=ok, other=-float("inf"))
            w = tl.exp2(s - norm)
            if WIDTH > 1:  # each head for itself; rows of a unit are not joined
                w += tl.load(mass + slot * WIDTH + g, mask=j < n - 1, other=0.0)
                tl.store(mass + slot * WIDTH + g, w, mask=ok)
                total = tl.maximum(total, w)
            else:
                total += w
    if WIDTH <= 1:
        total = total / (unit * G)
    if WIDTH == 1:
        total += tl.load(mass + slot, mask=j < n - 1, other=0.0)
        tl.store(mass + slot, total, mask=ok)
    p = tl.load(position + slot, mask=ok, other=0)
    total = tl.where(ok & (p <= tl.load(fence + first)), total, float("inf"))
    least = tl.min(total, 0)
    none: tl.constexpr = 1 << 30
    at = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + block
    tl.store(value + at, least)
    tl.store(index + at, tl.min(tl.where(ok & (total == least), j, none), 0))


def tally(
    logits_RHm: Tensor,
    lse_RH: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    source_R: Tensor,
    fence_R: Tensor,
    position: Tensor,
    mass: Tensor | None,
    mean: bool,
    unit: int,
) -> Least:
    """See overwrite.tally. One candidate a block."""
    (R, H, M), device = logits_RHm.shape, logits_RHm.device
    common.pages(*(x for x in (position, mass) if x is not None))
    blocks = triton.cdiv(M, BLOCK)
    value = common.scratch((R // unit, blocks), torch.float32, device)
    index = common.scratch((R // unit, blocks), torch.int32, device)
    tally_kernel[(R // unit, blocks)](
        logits_RHm,
        lse_RH,
        table_RP,
        lens_R,
        fence_R,
        position,
        position if mass is None else mass,
        value,
        index,
        logits_RHm.stride(0),
        logits_RHm.stride(1),
        table_RP.stride(0),
        unit,
        G=H,
        WIDTH=0 if mass is None else mass.shape[2],
        PAGE=position.shape[1],
        BN=BLOCK,
        LOG2E=common.LOG2E,
        num_warps=4,
    )
    return Least(value, index)
