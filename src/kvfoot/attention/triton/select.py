"""The best entries of each row by emitted logits (naive_choice.best): what a refresh reads next, without sorting rows.

Weights order as their logarithms, log2 w = logit - lse, which lie between 0 and minus a few dozens whatever the row's
length. Two histograms over that axis, of steps of 1/32 and of 1/65536, leave a bracket from the last entry that is
chosen to the last whose order matters, a few more than those that may leave; only they are compared with each other.
Every kernel has several programs per row, each for its own stretch of entries; a row of length 0 costs nothing. The
order of atomic additions changes no count, so nothing depends on it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common

BINS = 2048
BLOCK = 4096
"""Entries of a program."""
COMPARED = 16
"""Programs of a row that compare what is left."""


@triton.jit
def first_bin(g, BINS: tl.constexpr):
    """Of log2 weights, the greater the better: bins of 1/32, the lowest is for all below -64."""
    x = tl.maximum(-g, 0.0) * 32.0
    return BINS - 1 - tl.minimum(x, BINS - 1.0).to(tl.int32)


@triton.jit
def second_bin(g, BINS: tl.constexpr):
    """Inside a bin of the first kind: exact differences, cut to 1/2048 of the bin (in the lowest to 1/2)."""
    x = tl.maximum(-g, 0.0) * 32.0
    whole = tl.minimum(x, BINS - 1.0).to(tl.int32)
    rest = x - whole.to(tl.float32)
    y = tl.where(whole == BINS - 1, rest * 0.0625, rest * BINS)
    return BINS - 1 - tl.minimum(y, BINS - 1.0).to(tl.int32)


@triton.jit
def find(hist, rank, BINS: tl.constexpr):
    """The bin of the entry of that rank (1: the best), and how many lie in better ones."""
    b = tl.arange(0, BINS)
    c = tl.load(hist + b)
    better = tl.sum(c, 0) - tl.cumsum(c, 0)
    found = tl.sum((better >= rank).to(tl.int32), 0)
    return found, tl.sum(tl.where(b == found, better, 0), 0)


@triton.jit
def keys_kernel(
    score,
    lse,
    lens,
    pooled,
    raw,
    hist,
    score_row,
    score_head,
    width,
    sink,
    heads,
    HALF: tl.constexpr,
    LOG2E: tl.constexpr,
    BINS: tl.constexpr,
    BN: tl.constexpr,
):
    """log2 of the greatest weight of a group's heads, of an entry and of its neighbours; the first histogram."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.load(lens + row).to(tl.int32) - 1
    at = tl.program_id(1) * BN
    if at < m:
        j = at + tl.arange(0, BN)
        inside = j < m
        best = tl.full([BN], -float("inf"), tl.float32)
        own = tl.full([BN], -float("inf"), tl.float32)
        for h in range(heads):
            norm = tl.load(lse + row * heads + h) * LOG2E
            line = score + row * score_row + tl.full([], 0, tl.int64) + h * score_head
            for d in tl.static_range(-HALF, HALF + 1):
                ok = (j + d >= 0) & (j + d < m)
                s = tl.load(line + j + d, mask=ok, other=-float("inf")) - norm
                best = tl.maximum(best, s)
                if d == 0:
                    own = tl.maximum(own, s)
        best = tl.where(j < sink, float("inf"), best)
        tl.store(pooled + row * width + j, best, mask=inside)
        tl.store(raw + row * width + j, own, mask=inside)
        tl.atomic_add(hist + row * (3 * BINS) + first_bin(best, BINS), 1, mask=inside, sem="relaxed")


@triton.jit
def narrow_kernel(pooled, lens, hist, found, count, leaving, width, BINS: tl.constexpr, BN: tl.constexpr):
    """The second histograms: of the bins of the last that is chosen, and of the last whose order matters.

    found int32 [R, 4]: those two bins, and the ranks inside them.
    """
    row = tl.program_id(0).to(tl.int64)
    m = tl.load(lens + row).to(tl.int32) - 1
    at = tl.program_id(1) * BN
    if at < m:
        j = at + tl.arange(0, BN)
        inside = j < m
        g = tl.load(pooled + row * width + j, mask=inside, other=0.0)
        own = first_bin(g, BINS)
        into = hist + row * (3 * BINS)
        last = tl.minimum(count, m)
        first, above = find(into, last, BINS)
        tl.atomic_add(into + BINS + second_bin(g, BINS), 1, mask=inside & (own == first), sem="relaxed")
        ordered = tl.maximum(last - leaving, 1)
        other, over = find(into, ordered, BINS)
        tl.atomic_add(into + 2 * BINS + second_bin(g, BINS), 1, mask=inside & (own == other), sem="relaxed")
        if at == 0:
            tl.store(found + row * 4, first)
            tl.store(found + row * 4 + 1, last - above)
            tl.store(found + row * 4 + 2, other)
            tl.store(found + row * 4 + 3, ordered - over)


@triton.jit
def count_kernel(
    pooled, lens, hist, found, edges, counts, count, leaving, width, chunks, BINS: tl.constexpr, BN: tl.constexpr
):
    """Per program: entries beyond doubt, and those of the bracket. edges int32 [R, 2]: its bins, both counted in."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.load(lens + row).to(tl.int32) - 1
    at = tl.program_id(1) * BN
    if at < m:
        into = hist + row * (3 * BINS)
        first, _ = find(into + BINS, tl.load(found + row * 4 + 1), BINS)
        other, _ = find(into + 2 * BINS, tl.load(found + row * 4 + 3), BINS)
        low = tl.load(found + row * 4) * BINS + first
        high = tl.load(found + row * 4 + 2) * BINS + other
        high = tl.where(tl.minimum(count, m) <= leaving, BINS * BINS, high)
        j = at + tl.arange(0, BN)
        inside = j < m
        g = tl.load(pooled + row * width + j, mask=inside, other=0.0)
        own = first_bin(g, BINS) * BINS + second_bin(g, BINS)
        to = counts + (row * chunks + tl.program_id(1)) * 2
        tl.store(to, tl.sum((inside & (own > high)).to(tl.int32), 0))
        tl.store(to + 1, tl.sum((inside & (own >= low) & (own <= high)).to(tl.int32), 0))
        if at == 0:
            tl.store(edges + row * 2, low)
            tl.store(edges + row * 2 + 1, high)


@triton.jit
def scatter_kernel(
    pooled,
    raw,
    lens,
    edges,
    counts,
    left,
    left_pooled,
    left_raw,
    left_entry,
    out,
    count,
    width,
    chunks,
    BINS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BN: tl.constexpr,
):
    """Entries beyond doubt to their places by position, the bracket's by position to left_*; left [R, 2]: how many
    there are, and how many of them are chosen."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.load(lens + row).to(tl.int32) - 1
    at = tl.program_id(1) * BN
    if at < m:
        c = tl.arange(0, CHUNKS)
        used = c < tl.cdiv(m, BN)
        line = counts + (row * chunks + c) * 2
        sure = tl.load(line, mask=used, other=0)
        open_ = tl.load(line + 1, mask=used, other=0)
        before = c < tl.program_id(1)
        wanted = tl.minimum(count, m) - tl.sum(sure, 0)
        j = at + tl.arange(0, BN)
        inside = j < m
        g = tl.load(pooled + row * width + j, mask=inside, other=0.0)
        low = tl.load(edges + row * 2)
        high = tl.load(edges + row * 2 + 1)
        own = first_bin(g, BINS) * BINS + second_bin(g, BINS)
        taken = inside & (own > high)
        place = wanted + tl.sum(tl.where(before, sure, 0), 0) + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(out + row * count + place, j.to(tl.int64), mask=taken)
        asked = inside & (own >= low) & (own <= high)
        place = tl.sum(tl.where(before, open_, 0), 0) + tl.cumsum(asked.to(tl.int32), 0) - 1
        to = row * width + place
        tl.store(left_pooled + to, g, mask=asked)
        tl.store(left_raw + to, tl.load(raw + row * width + j, mask=asked, other=0.0), mask=asked)
        tl.store(left_entry + to, j, mask=asked)
        if at == 0:
            tl.store(left + row * 2, tl.sum(open_, 0))
            tl.store(left + row * 2 + 1, wanted)


@triton.jit
def rank_kernel(
    lens,
    left,
    left_pooled,
    left_raw,
    left_entry,
    out,
    count,
    width,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """An entry's rank is how many are better: by pooled weight, its own, its position. The chosen, worst first."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(lens + row) > 1:
        total = tl.load(left + row * 2)
        wanted = tl.load(left + row * 2 + 1)
        line = row * width
        for at in range(tl.program_id(1) * BI, total, tl.num_programs(1) * BI):
            i = at + tl.arange(0, BI)
            inside = i < total
            a = tl.load(left_pooled + line + i, mask=inside, other=0.0)[:, None]
            b = tl.load(left_raw + line + i, mask=inside, other=0.0)[:, None]
            rank = tl.zeros([BI], tl.int32)
            for to in range(0, total, BJ):
                k = to + tl.arange(0, BJ)
                c = tl.load(left_pooled + line + k, mask=k < total, other=-float("inf"))[None, :]
                d = tl.load(left_raw + line + k, mask=k < total, other=-float("inf"))[None, :]
                later = (c == a) & ((d > b) | ((d == b) & (k[None, :] > i[:, None])))
                rank += tl.sum((((c > a) | later) & (k < total)[None, :]).to(tl.int32), 1)
            entry = tl.load(left_entry + line + i, mask=inside, other=0)
            tl.store(out + row * count + wanted - 1 - rank, entry.to(tl.int64), mask=inside & (rank < wanted))


def best(score_RHm: Tensor, lse_RH: Tensor, lens_R: Tensor, count: int, kernel: int, sink: int, leaving: int) -> Tensor:
    """Slots int64 [R, count] of the best of the first lens_R - 1 entries, by base-2 logits and natural lse.

    The `leaving` worst of them stand first, worst first; the others follow in an order that depends on nothing but the
    row. A row of length 0 or 1 gets nothing, and one that has fewer than `count` such entries has them first.
    """
    R, H, m = score_RHm.shape
    device = score_RHm.device
    pooled = common.scratch((R, m), torch.float32, device)
    raw = common.scratch((R, m), torch.float32, device)
    hist = torch.zeros(R, 3, BINS, dtype=torch.int32, device=device)
    keys_kernel[(R, triton.cdiv(m, BLOCK))](
        score_RHm,
        lse_RH,
        lens_R,
        pooled,
        raw,
        hist,
        score_RHm.stride(0),
        score_RHm.stride(1),
        m,
        sink,
        H,
        HALF=kernel // 2,
        LOG2E=common.LOG2E,
        BINS=BINS,
        BN=BLOCK,
        num_warps=8,
        enable_fp_fusion=False,  # the sum that orders entries is the definition's, to the bit
    )
    return ranked(pooled, raw, lens_R, hist, count, leaving)


def ranked(pooled: Tensor, raw: Tensor, lens_R: Tensor, hist: Tensor, count: int, leaving: int) -> Tensor:
    """The same of log2 weights fp32 [R, m], pooled and not, of which the first lens_R - 1 are meant.

    hist int32 [R, 3, BINS]: how many of them lie in each bin, and zeros.
    """
    (R, m), device = pooled.shape, pooled.device
    chunks = triton.cdiv(m, BLOCK)
    found = common.scratch((R, 4), torch.int32, device)
    edges = common.scratch((R, 2), torch.int32, device)
    counts = common.scratch((R, chunks, 2), torch.int32, device)
    left = common.scratch((R, 2), torch.int32, device)
    left_pooled = common.scratch((R, m), torch.float32, device)
    left_raw = common.scratch((R, m), torch.float32, device)
    left_entry = common.scratch((R, m), torch.int32, device)
    out = common.scratch((R, count), torch.int64, device)
    grid, shape = (R, chunks), {"BINS": BINS, "BN": BLOCK, "num_warps": 8}
    narrow_kernel[grid](pooled, lens_R, hist, found, count, leaving, m, **shape)
    count_kernel[grid](pooled, lens_R, hist, found, edges, counts, count, leaving, m, chunks, **shape)
    left_of = (left, left_pooled, left_raw, left_entry)
    scatter_kernel[grid](
        pooled, raw, lens_R, edges, counts, *left_of, out, count, m, chunks, CHUNKS=common.padded(chunks), **shape
    )
    rank_kernel[(R, COMPARED)](lens_R, *left_of, out, count, m, BI=64, BJ=64, num_warps=4)
    return out
