"""What all heads of a sequence vote for, by emitted logits (naive_choice.vote): TokenSelect's choice without its sorts.

A head's vote is its softmax over the contested entries alone. One kernel sums each head's weights there, stretch by
stretch; the next divides, adds up over heads, and goes on by topk.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common, topk
from kvfoot.attention.triton.topk import begun


@triton.jit
def mass_kernel(
    score, lse, lens, part, score_row, score_head, first, last, chunks, LOG2E: tl.constexpr, BN: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    end = tl.load(lens + row).to(tl.int32) - last
    at = first + tl.program_id(2) * BN
    if at < end:
        j = at + tl.arange(0, BN)
        line = row * tl.num_programs(1) + head
        norm = tl.load(lse + line) * LOG2E
        where = score + row * score_row + head.to(tl.int64) * score_head + j
        s = tl.load(where, mask=j < end, other=-float("inf"))
        tl.store(part + line * chunks + tl.program_id(2), tl.sum(tl.exp2(s - norm), 0))


@triton.jit
def vote_kernel(
    score,
    lse,
    lens,
    part,
    votes,
    coarse,
    fine,
    left,
    score_row,
    score_head,
    first,
    last,
    width,
    chunks,
    rows,
    heads,
    LOG2E: tl.constexpr,
    CHUNKS: tl.constexpr,
    COARSE: tl.constexpr,
    FINE: tl.constexpr,
    BN: tl.constexpr,
):
    """log2 of the mean vote for entry first + i, in place i; its first histogram."""
    sequence = tl.program_id(0).to(tl.int64)
    end = tl.load(lens + sequence * rows).to(tl.int32) - last
    at = first + tl.program_id(1) * BN
    if at < end:
        j = at + tl.arange(0, BN)
        c = tl.arange(0, CHUNKS)
        used = c < tl.cdiv(end - first, BN)
        total = tl.zeros([BN], tl.float32)
        for i in range(rows * heads):
            line = sequence * rows * heads + i
            norm = tl.load(lse + line) * LOG2E
            mass = tl.sum(tl.load(part + line * chunks + c, mask=used, other=0.0), 0)
            where = score + (line // heads) * score_row + (line % heads) * score_head + j
            s = tl.load(where, mask=j < end, other=-float("inf"))
            total += tl.exp2(s - norm) / tl.maximum(mass, 1.1754943508222875e-38)
        g = tl.log2(tl.maximum(total / (rows * heads), 1.1754943508222875e-38))
        tl.store(votes + sequence * width + j - first, g, mask=j < end)
        begun(g, j < end, coarse, fine, left, sequence, COARSE, FINE)


def vote(
    score_RHm: Tensor, lse_RH: Tensor, lens_R: Tensor, sequences: int, first: int, last: int, count: int
) -> Tensor:
    """int64 [B, count]: of entries [first, n - last) those with the most votes of a sequence's R / B rows and H heads.

    Base-2 logits, natural lse; a sequence's rows have one length. In an order that depends on nothing but the sequence;
    a sequence of length 0 gets nothing.
    """
    R, H, m = score_RHm.shape
    B, device = sequences, score_RHm.device
    chunks = triton.cdiv(m, topk.BLOCK)
    part = common.scratch((R, H, chunks), torch.float32, device)
    made = topk.Weights.room(B, m, topk.BLOCK, device, pooling=False)
    given = (score_RHm, lse_RH, lens_R, part)
    pitches = (score_RHm.stride(0), score_RHm.stride(1))
    shape = {"LOG2E": common.LOG2E, "BN": topk.BLOCK, "num_warps": 8}
    mass_kernel[(R, H, chunks)](*given, *pitches, first, last, chunks, **shape)
    vote_kernel[(B, chunks)](
        *given,
        made.pooled,
        made.coarse,
        made.fine,
        made.left,
        *pitches,
        first,
        last,
        m,
        chunks,
        R // B,
        H,
        CHUNKS=common.padded(chunks),
        COARSE=topk.COARSE,
        FINE=topk.FINE,
        **shape,
    )
    contested = (lens_R.unflatten(0, (B, -1))[:, 0] - (first + last - 1)).clamp(min=0)
    return topk.ranked(made, contested, count, 1, newest=False) + first
