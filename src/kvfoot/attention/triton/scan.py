"""Logits of a decode step without its values: what a refresh that reads only its choice asks of whole rows.

As decode.py, with half the bytes: the same plan, twice the buffers of keys in the same shared memory, and no output but
logits and their lse.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common
from kvfoot.attention.triton.common import fetch, offset_of, page_of
from kvfoot.attention.triton.decode import launch, planned
from kvfoot.attention.triton.plan import Plan


@triton.jit
def scan_kernel(
    q,
    k,
    table,
    lens,
    tiles,
    first,
    part_lse,
    score,
    rows,
    table_pitch,
    q_row,
    q_head,
    score_row,
    score_head,
    scale,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    PAGE: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    p = tl.program_id(0)
    total = tl.load(tiles + rows)
    share = tl.maximum(tl.cdiv(total, tl.num_programs(0)), 1)
    begin = p * share
    end = tl.minimum(begin + share, total)
    start_row = tl.load(first + p)
    stop_row = tl.minimum(tl.load(first + p + 1) + 1, rows)
    g = tl.arange(0, GP)
    i = tl.arange(0, BN)
    for row in range(start_row, stop_row):
        base = tl.load(tiles + row)
        t0 = tl.maximum(begin, base)
        t1 = tl.minimum(end, tl.load(tiles + row + 1))
        if t0 < t1:
            row64 = tl.full([], 0, tl.int64) + row  # the interpreter counts rows in Python integers
            lo = (t0 - base) * BN
            hi = tl.minimum((t1 - base) * BN, tl.load(lens + row).to(tl.int32))
            q_GD = fetch(q, row64 * q_row + g.to(tl.int64) * q_head, g < G, D, DP, UPCAST)
            row_table = table + row64 * table_pitch
            row_score = score + row64 * score_row
            m = tl.full([GP], -float("inf"), tl.float32)
            l_GN = tl.zeros([GP, BN], tl.float32)
            page = page_of(row_table, lo + i, lo + i < hi, PAGE)
            for at in tl.range(lo, hi, BN, num_stages=STAGES):
                j = at + i
                ok = j < hi
                offset = offset_of(page, at, i, D, PAGE, BN)
                page = page_of(row_table, j + BN, j + BN < hi, PAGE)
                k_ND = fetch(k, offset, ok, D, DP, UPCAST)
                s = tl.dot(q_GD, tl.trans(k_ND), input_precision=PRECISION) * scale
                out = row_score + g[:, None].to(tl.int64) * score_head + j[None, :]
                tl.store(out, s, mask=(g[:, None] < G) & ok[None, :])
                s = tl.where(ok[None, :], s, -float("inf"))
                m_new = tl.maximum(m, tl.max(s, 1))
                l_GN = l_GN * tl.exp2(m - m_new)[:, None] + tl.exp2(s - m_new[:, None])
                m = m_new
            slot = (p + row64) * G + g
            tl.store(part_lse + slot, m + tl.log2(tl.sum(l_GN, 1)), mask=g < G)


@triton.jit
def lse_kernel(part_lse, tiles, lse, rows, programs, G: tl.constexpr, BS: tl.constexpr, LN2: tl.constexpr):
    """Of a row's parts, at slot program + row (merge.py)."""
    row = tl.program_id(0)
    g = tl.program_id(1)
    share = tl.maximum(tl.cdiv(tl.load(tiles + rows), programs), 1)
    begin = tl.load(tiles + row)
    end = tl.load(tiles + row + 1)
    low = begin // share
    high = tl.where(end > begin, (end - 1) // share + 1, low)
    m = tl.full([1], -float("inf"), tl.float32)
    l = tl.zeros([1], tl.float32)
    for at in range(low, high, BS):
        p = at + tl.arange(0, BS)
        part = tl.load(part_lse + (p + row).to(tl.int64) * G + g, mask=p < high, other=-float("inf"))
        m_new = tl.maximum(m, tl.max(part, 0))
        l = l * tl.exp2(m - m_new) + tl.sum(tl.exp2(part - m_new), 0)
        m = m_new
    found = tl.where(l > 0.0, (m + tl.log2(tl.where(l > 0.0, l, 1.0))) * LN2, -float("inf"))
    tl.store(lse + row.to(tl.int64) * G + g + tl.arange(0, 1), found)


def scan(
    q_RHD: Tensor, k_pages: Tensor, table_RP: Tensor, lens_R: Tensor, scale: float, width: int, plan: Plan | None = None
) -> tuple[Tensor, Tensor]:
    """Base-2 logits fp32 [R, H, width] of the first lens_R entries of each row, and their natural lse [R, H].

    What lies behind a row's entries is undefined; an empty row has lse = -inf. plan: of this layer (decode.planned).
    """
    R, H, D = q_RHD.shape
    common.check(q_RHD, k_pages, k_pages.shape[1], H)
    common.pages(k_pages)
    how = launch(D, k_pages.dtype)
    made = plan or planned(lens_R[None], D, k_pages.dtype, how)
    q, table = common.unit(q_RHD), common.narrow(table_RP)
    score = common.scratch((R, H, width), torch.float32, q.device)
    lse = common.scratch((R, H), torch.float32, q.device)
    part_lse = common.scratch((made.programs + R, H), torch.float32, q.device)
    scan_kernel[(made.programs,)](
        q,
        k_pages,
        table,
        lens_R,
        made.tiles,
        made.first,
        part_lse,
        score,
        R,
        table.stride(0),
        q.stride(0),
        q.stride(1),
        score.stride(0),
        score.stride(1),
        scale * common.LOG2E,
        G=H,
        GP=common.padded(H),
        D=D,
        DP=common.padded(D),
        PAGE=k_pages.shape[1],
        BN=made.tile,
        STAGES=2 * how.stages - 1,
        PRECISION=common.precision(k_pages.dtype, D),
        UPCAST=common.upcast(k_pages.dtype),
        maxnreg=how.registers,
        num_warps=how.warps,
    )
    lse_kernel[(R, H)](part_lse, made.tiles, lse, R, made.programs, G=H, BS=64, LN2=common.LN2, num_warps=1)
    return score, lse
