"""The best of each row by log2 of its entries' weights: what a refresh reads next, without sorting rows.

Such logarithms lie between 0 and minus a few dozens whatever the row's length. Two histograms over that axis, of steps
of 1/4 and of 1/8192, leave a bracket from the last entry that is chosen to the last whose order matters, a few more
than those that may leave; only they are compared with each other. Three launches behind the one that made the weights
(select.py, vote.py): every kernel has several programs per row, each for its own stretch of entries, and what has to be
zero in one was cleared by the one before. A row without entries costs nothing. The order of atomic additions changes no
count and no rank, so nothing depends on it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common

COARSE, FINE = 256, 2048
"""Bins of 1/4; and of each such bin. The first are counted in registers: atomics would meet in a few dozen of them."""
BLOCK = 4096
"""Entries of a program."""


@triton.jit
def coarse_bin(g, COARSE: tl.constexpr):
    """Of log2 weights, the greater the better: bins of 1/4, the lowest is for all below 1/4 - COARSE / 4."""
    x = tl.maximum(-g, 0.0) * 4.0
    return COARSE - 1 - tl.minimum(x, COARSE - 1.0).to(tl.int32)


@triton.jit
def fine_bin(g, COARSE: tl.constexpr, FINE: tl.constexpr):
    """Inside a bin of the first kind: exact differences, cut to 1 / FINE of the bin (in the lowest to 1/4)."""
    x = tl.maximum(-g, 0.0) * 4.0
    whole = tl.minimum(x, COARSE - 1.0).to(tl.int32)
    rest = x - whole.to(tl.float32)
    y = tl.where(whole == COARSE - 1, rest, rest * FINE)
    return FINE - 1 - tl.minimum(y, FINE - 1.0).to(tl.int32)


@triton.jit
def find(count, rank, BINS: tl.constexpr):
    """The bin of the entry of that rank (1: the best), and how many lie in better ones; count int32 [BINS]."""
    better = tl.sum(count, 0) - tl.cumsum(count, 0)
    found = tl.sum((better >= rank).to(tl.int32), 0)
    return found, tl.sum(tl.where(tl.arange(0, BINS) == found, better, 0), 0)


@triton.jit
def fetched(line, j, inside, width):
    """A row's weights j; loads go in fours, which a mask that ends anywhere would not let them."""
    return tl.where(inside, tl.load(line + j, mask=j < width, other=0.0), 0.0)


@triton.jit
def begun(g, inside, coarse, fine, left, row, COARSE: tl.constexpr, FINE: tl.constexpr):
    """The first histogram of a program's entries; the row's first program clears what the next kernels add up."""
    to = (row * tl.num_programs(1) + tl.program_id(1)) * COARSE + tl.arange(0, COARSE)
    tl.store(coarse + to, tl.histogram(coarse_bin(g, COARSE), COARSE, mask=inside))
    if tl.program_id(1) == 0:
        into = fine + row * (2 * FINE) + tl.arange(0, FINE)  # a range as long as a tile would be laid out as one
        tl.store(into, tl.zeros([FINE], tl.int32))
        tl.store(into + FINE, tl.zeros([FINE], tl.int32))
        tl.store(left + row, 0)


@triton.jit
def narrow_kernel(
    pooled,
    lens,
    coarse,
    fine,
    found,
    count,
    leaving,
    width,
    parts,
    tile,
    COARSE: tl.constexpr,
    FINE: tl.constexpr,
    BN: tl.constexpr,
):
    """The second histograms: of the bin of the last that is chosen, and of the last whose order matters, if another.

    coarse int32 [R, parts, COARSE], a part for each `tile` entries. found int32 [R, 4]: both bins, the ranks in them.
    """
    row = tl.program_id(0).to(tl.int64)
    m = tl.load(lens + row).to(tl.int32) - 1
    at = tl.program_id(1) * BN
    if at < m:
        j = at + tl.arange(0, BN)
        inside = j < m
        g = fetched(pooled + row * width, j, inside, width)
        b = tl.arange(0, COARSE)
        used = tl.cdiv(m, tile)
        total = tl.zeros([COARSE], tl.int32)
        for to in range(0, used, 16):
            p = to + tl.arange(0, 16)
            line = coarse + (row * parts + p[:, None]) * COARSE + b[None, :]
            total += tl.sum(tl.load(line, mask=p[:, None] < used, other=0), 0)
        last = tl.minimum(count, m)
        ordered = tl.maximum(last - leaving, 1)
        first, above = find(total, last, COARSE)
        other, over = find(total, ordered, COARSE)
        own = coarse_bin(g, COARSE)
        into = fine + row * (2 * FINE) + fine_bin(g, COARSE, FINE)
        tl.atomic_add(into, 1, mask=inside & (own == first), sem="relaxed")
        if other != first:
            tl.atomic_add(into + FINE, 1, mask=inside & (own == other), sem="relaxed")
        if at == 0:
            tl.store(found + row * 4, first)
            tl.store(found + row * 4 + 1, last - above)
            tl.store(found + row * 4 + 2, other)
            tl.store(found + row * 4 + 3, ordered - over)


@triton.jit
def bracket_kernel(
    pooled,
    lens,
    fine,
    found,
    edge,
    sure,
    left,
    bracket,
    count,
    leaving,
    width,
    chunks,
    COARSE: tl.constexpr,
    FINE: tl.constexpr,
    BN: tl.constexpr,
):
    """Per program how many entries are beyond doubt, above edge [R]; the `left` ones of the bracket, in any order."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.load(lens + row).to(tl.int32) - 1
    at = tl.program_id(1) * BN
    if at < m:
        j = at + tl.arange(0, BN)
        inside = j < m
        g = fetched(pooled + row * width, j, inside, width)
        first = tl.load(found + row * 4)
        other = tl.load(found + row * 4 + 2)
        b = tl.arange(0, FINE)
        into = fine + row * (2 * FINE)
        in_first, _ = find(tl.load(into + b), tl.load(found + row * 4 + 1), FINE)
        into += tl.where(other == first, 0, FINE)
        in_other, _ = find(tl.load(into + b), tl.load(found + row * 4 + 3), FINE)
        low = first * FINE + in_first
        high = tl.where(tl.minimum(count, m) <= leaving, COARSE * FINE, other * FINE + in_other)
        own = coarse_bin(g, COARSE) * FINE + fine_bin(g, COARSE, FINE)
        tl.store(sure + row * chunks + tl.program_id(1), tl.sum((inside & (own > high)).to(tl.int32), 0))
        if at == 0:
            tl.store(edge + row, high)
        asked = inside & (own >= low) & (own <= high)
        some = tl.sum(asked.to(tl.int32), 0)
        if some > 0:
            to = tl.atomic_add(left + row, some, sem="relaxed") + tl.cumsum(asked.to(tl.int32), 0) - 1
            tl.store(bracket + row * width + to, j, mask=asked)


@triton.jit
def place_kernel(
    pooled,
    raw,
    lens,
    edge,
    sure,
    left,
    bracket,
    out,
    count,
    width,
    chunks,
    NEWEST: tl.constexpr,
    COARSE: tl.constexpr,
    FINE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BN: tl.constexpr,
    BI: tl.constexpr,
):
    """Entries beyond doubt to their places by position; before them the bracket's, worst first, by rank.

    An entry's rank is how many are better: by pooled weight, its own, its position.
    """
    row = tl.program_id(0).to(tl.int64)
    m = tl.load(lens + row).to(tl.int32) - 1
    at = tl.program_id(1) * BN
    pitch = count + NEWEST
    if NEWEST:
        tl.store(out + row * pitch + count, tl.maximum(m, 0).to(tl.int64), mask=at == 0)
    if at < m:
        j = at + tl.arange(0, BN)
        inside = j < m
        g = fetched(pooled + row * width, j, inside, width)
        c = tl.arange(0, CHUNKS)
        beyond = tl.load(sure + row * chunks + c, mask=c < tl.cdiv(m, BN), other=0)
        wanted = tl.minimum(count, m) - tl.sum(beyond, 0)
        taken = inside & (coarse_bin(g, COARSE) * FINE + fine_bin(g, COARSE, FINE) > tl.load(edge + row))
        before = wanted + tl.sum(tl.where(c < tl.program_id(1), beyond, 0), 0)
        tl.store(out + row * pitch + before + tl.cumsum(taken.to(tl.int32), 0) - 1, j.to(tl.int64), mask=taken)
        total = tl.load(left + row)
        line = row * width
        for start in range(tl.program_id(1) * BI, total, tl.cdiv(m, BN) * BI):
            i = start + tl.arange(0, BI)
            own = i < total
            entry = tl.load(bracket + line + i, mask=own, other=0)
            a = tl.load(pooled + line + entry, mask=own, other=0.0)[:, None]
            b = tl.load(raw + line + entry, mask=own, other=0.0)[:, None]
            rank = tl.zeros([BI], tl.int32)
            for to in range(0, total, BI):
                k = to + tl.arange(0, BI)
                e = tl.load(bracket + line + k, mask=k < total, other=0)
                p = tl.load(pooled + line + e, mask=k < total, other=0.0)[None, :]
                q = tl.load(raw + line + e, mask=k < total, other=0.0)[None, :]
                later = (p == a) & ((q > b) | ((q == b) & (e[None, :] > entry[:, None])))
                rank += tl.sum((((p > a) | later) & (k < total)[None, :]).to(tl.int32), 1)
            tl.store(out + row * pitch + wanted - 1 - rank, entry.to(tl.int64), mask=own & (rank < wanted))


@dataclass(frozen=True)
class Weights:
    """log2 weights fp32 [R, m], pooled and an entry's own, and what `begun` leaves: int32 [R, parts, COARSE], the first
    histogram of each `tile` entries; zeros int32 [R, 2, FINE] and [R].
    """

    pooled: Tensor
    raw: Tensor
    coarse: Tensor
    fine: Tensor
    left: Tensor
    tile: int

    @staticmethod
    def room(rows: int, entries: int, tile: int, device: torch.device, pooling: bool) -> "Weights":
        """Uninitialised; without pooling both weights are one."""
        pooled = common.scratch((rows, entries), torch.float32, device)
        raw = common.scratch((rows, entries), torch.float32, device) if pooling else pooled
        coarse = common.scratch((rows, triton.cdiv(entries, tile), COARSE), torch.int32, device)
        fine = common.scratch((rows, 2, FINE), torch.int32, device)
        return Weights(pooled, raw, coarse, fine, common.scratch((rows,), torch.int32, device), tile)


def ranked(made: Weights, lens_R: Tensor, count: int, leaving: int, newest: bool) -> Tensor:
    """Entries int64 [R, count] of the best of the first lens_R - 1; the `leaving` worst of them first, worst first.

    newest: entry lens_R - 1 behind them, in a column of its own.
    """
    (R, m), device = made.pooled.shape, made.pooled.device
    chunks = triton.cdiv(m, BLOCK)
    found = common.scratch((R, 4), torch.int32, device)
    edge = common.scratch((R,), torch.int32, device)
    sure = common.scratch((R, chunks), torch.int32, device)
    bracket = common.scratch((R, m), torch.int32, device)
    out = common.scratch((R, count + newest), torch.int64, device)
    pooled, raw, left = made.pooled, made.raw, made.left
    grid, shape = (R, chunks), {"COARSE": COARSE, "FINE": FINE, "BN": BLOCK, "num_warps": 8}
    parts = made.coarse.shape[1]
    narrow_kernel[grid](pooled, lens_R, made.coarse, made.fine, found, count, leaving, m, parts, made.tile, **shape)
    shape["maxnreg"] = 128  # two programs a multiprocessor: 256 are launched for a layer of eight rows of 128K
    own = (edge, sure, left, bracket)
    bracket_kernel[grid](pooled, lens_R, made.fine, found, *own, count, leaving, m, chunks, **shape)
    few = {"NEWEST": newest, "CHUNKS": common.padded(chunks), "BI": 64}
    place_kernel[grid](pooled, raw, lens_R, *own, out, count, m, chunks, **few, **shape)
    return out
