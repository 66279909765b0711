"""The best entries of each row by emitted logits (naive_choice.best): log2 of their weights, which topk.py chooses by.

Weights order as their logarithms, log2 w = logit - lse: no exponential is taken, and nothing underflows into a tie.
"""

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common, topk
from kvfoot.attention.triton.topk import begun

WIDEST = 513
"""The widest pooling: a program's tile overlaps the next ones by a half of it."""


@triton.jit
def keys_kernel(
    score,
    lse,
    lens,
    pooled,
    raw,
    coarse,
    fine,
    left,
    score_row,
    score_head,
    width,
    sink,
    H: tl.constexpr,
    SOME: tl.constexpr,
    HALF: tl.constexpr,
    DOUBLED: tl.constexpr,
    PAD: tl.constexpr,
    LOG2E: tl.constexpr,
    COARSE: tl.constexpr,
    FINE: tl.constexpr,
    BN: tl.constexpr,
):
    """log2 of the greatest weight of a group's heads, of an entry and of its neighbours; the first histogram.

    Each logit is read once: a tile overlaps the next ones by what pooling reaches, and neighbours meet in the program.
    """
    row = tl.program_id(0).to(tl.int64)
    m = tl.load(lens + row).to(tl.int32) - 1
    at = tl.program_id(1) * (BN - 2 * PAD)
    if at < m:
        i = tl.arange(0, BN)
        j = at - PAD + i
        ok = (j >= 0) & (j < m)
        own = tl.full([BN], -float("inf"), tl.float32)
        for first in range(0, H, SOME):
            for h in tl.static_range(SOME):
                norm = tl.load(lse + row * H + first + h) * LOG2E
                s = tl.load(score + row * score_row + (first + h) * score_head + j, mask=ok, other=-float("inf"))
                own = tl.maximum(own, s - norm)
        tl.store(raw + row * width + j, own, mask=ok & (i >= PAD) & (i < BN - PAD))
        best = own  # of entries i ... i + span - 1, the span doubled and then filled up
        for e in tl.static_range(DOUBLED):
            best = tl.maximum(best, tl.gather(best, tl.minimum(i + (1 << e), BN - 1), 0))
        if (1 << DOUBLED) < 2 * HALF + 1:
            best = tl.maximum(best, tl.gather(best, tl.minimum(i + (2 * HALF + 1 - (1 << DOUBLED)), BN - 1), 0))
        j += HALF
        inside = (j < m) & (i >= PAD - HALF) & (i < BN - PAD - HALF)
        best = tl.where(j < sink, float("inf"), best)
        tl.store(pooled + row * width + j, best, mask=inside)
        begun(best, inside, coarse, fine, left, row, COARSE, FINE)


def best(score_RHm: Tensor, lse_RH: Tensor, lens_R: Tensor, count: int, kernel: int, sink: int, leaving: int) -> Tensor:
    """Slots int64 [R, count + 1]: the best of the first lens_R - 1 entries, by base-2 logits and natural lse, and the
    newest behind them.

    The `leaving` worst of them stand first, worst first; the others follow in an order that depends on nothing but the
    row. A row of length 0 or 1 gets nothing else, and one that has fewer than `count` such entries has them first.
    """
    R, H, m = score_RHm.shape
    half = kernel // 2
    pad = half | 1  # odd: single words by neighbouring threads, which then exchange them without bank conflicts
    made = topk.Weights.room(R, m, topk.BLOCK - 2 * pad, score_RHm.device, pooling=True)
    keys_kernel[(R, made.coarse.shape[1])](
        score_RHm,
        lse_RH,
        lens_R,
        made.pooled,
        made.raw,
        made.coarse,
        made.fine,
        made.left,
        score_RHm.stride(0),
        score_RHm.stride(1),
        m,
        sink,
        H=H,
        SOME=max(some for some in range(1, 9) if H % some == 0),
        HALF=half,
        DOUBLED=kernel.bit_length() - 1,
        PAD=pad,
        LOG2E=common.LOG2E,
        COARSE=topk.COARSE,
        FINE=topk.FINE,
        BN=topk.BLOCK,
        num_warps=8,
        enable_fp_fusion=False,  # the sum that orders entries is the definition's, to the bit
    )
    return topk.ranked(made, lens_R, count, leaving, newest=True)
