"""Attention mass of a window's queries (naive.window_scores, naive_paged too): their normalisers, then the columns.

The normalisers come from runs of entries in parallel, for a window has few queries and a long row: each program leaves
the log-sum-exp of its run. Keys are read twice, values never, and nothing w x m is stored.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common
from kvfoot.attention.triton.column_scores import column_scores
from kvfoot.attention.triton.common import Launch, fetch, join, offset_of, page_of


@triton.jit
def window_lse_kernel(
    q,
    k,
    table,
    lens,
    part_lse,
    n,
    m_all,
    run,
    table_pitch,
    q_row,
    q_head,
    q_query,
    k_pitch,
    k_row,
    scale,
    LN2: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    PAGE: tl.constexpr,
    RAGGED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    row = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1)
    x = tl.program_id(0) * BM + tl.arange(0, BM)
    ok_M = x < n * G
    i = x // G
    g = x % G
    m_row = m_all
    if RAGGED:
        m_row = tl.load(lens + row).to(tl.int32)
    p = m_row - n + i
    q_MD = fetch(q, row * q_row + g.to(tl.int64) * q_head + i.to(tl.int64) * q_query, ok_M, D, DP, UPCAST)
    row_table = table + row * table_pitch
    row_k = k + row * k_row
    m = tl.full([BM], -float("inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    y = tl.arange(0, BN)
    lo = part * run
    hi = tl.minimum(lo + run, m_row)
    page = page_of(row_table, lo + y, lo + y < hi, PAGE)
    for at in tl.range(lo, hi, BN, num_stages=STAGES):
        j = at + y
        ok = j < hi
        offset = offset_of(page, at, y, k_pitch, PAGE, BN)
        page = page_of(row_table, j + BN, j + BN < hi, PAGE)
        k_ND = fetch(row_k, offset, ok, D, DP, UPCAST)
        s = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale
        s = tl.where(ok[None, :] & (j[None, :] <= p[:, None]), s, -float("inf"))
        m, _, _, l = join(m, l, s)
    some = l > 0.0
    value = tl.where(some, (m + tl.log2(tl.where(some, l, 1.0))) * LN2, -float("inf"))
    at = ((row * tl.num_programs(1) + part) * G + g) * n + i
    tl.store(part_lse + at, value, mask=ok_M)


def launch(head_size: int, dtype: torch.dtype) -> Launch:
    if dtype == torch.float32 and head_size > 64:
        small = head_size > 128
        return Launch(entries=16 if small else 64, warps=8, stages=2, queries=16 if small else 32)
    if dtype == torch.float32 or head_size > 128:
        return Launch(entries=32, warps=4, stages=2, queries=32)
    return Launch(entries=64, warps=4, stages=3, queries=64)


def window_lse(
    q_RHwD: Tensor,
    k: Tensor,
    table_RP: Tensor | None,
    lens_R: Tensor | None,
    scale: float,
    width: int | None = None,
    how: Launch | None = None,
) -> Tensor:
    """Normalisers of the last w queries over a row's entries: fp32 [R, H, w], -inf where a query sees none."""
    R, H, n, D = q_RHwD.shape
    page = None if table_RP is None else k.shape[1]
    common.check(q_RHwD, k, page, H)
    if table_RP is not None:
        common.pages(k)
        table_RP = common.narrow(table_RP)
    q, k = common.unit(q_RHwD), common.unit(k)
    m = k.shape[1] if table_RP is None else 0
    wide = m if width is None else width
    how = how or launch(D, k.dtype)
    blocks = triton.cdiv(n * H, how.queries)
    parts = min(triton.cdiv(wide, 4 * how.entries), max(1, 4 * common.multiprocessors(q.device) // (R * blocks)))
    run = triton.cdiv(triton.cdiv(wide, max(parts, 1)), how.entries) * how.entries
    parts = triton.cdiv(wide, run) if run else 1
    part_lse = common.scratch((R, parts, H, n), torch.float32, q.device)
    window_lse_kernel[(blocks, parts, R)](
        q,
        k,
        part_lse if table_RP is None else table_RP,
        part_lse if lens_R is None else lens_R,
        part_lse,
        n,
        m,
        run,
        0 if table_RP is None else table_RP.stride(0),
        *q.stride()[:3],
        *((k.stride(1), k.stride(0)) if table_RP is None else (D, 0)),
        scale * common.LOG2E,
        LN2=common.LN2,
        G=H,
        D=D,
        DP=common.padded(D),
        PAGE=page or 0,
        RAGGED=lens_R is not None,
        BM=how.queries,
        BN=how.entries,
        STAGES=how.stages,
        PRECISION=common.precision(k.dtype, D),
        UPCAST=common.upcast(k.dtype),
        num_warps=how.warps,
    )
    return part_lse.logsumexp(1)


def window_scores(
    q_RHwD: Tensor,
    k: Tensor,
    table_RP: Tensor | None,
    lens_R: Tensor | None,
    scale: float,
    width: int | None = None,
) -> Tensor:
    """fp32 [R, H, width]: mass that the last w queries put on each entry, 0 beyond a row's entries.

    k: pages with table and lengths, or [R, m, D] with neither. width >= every length; m if not given.
    """
    lse = window_lse(q_RHwD, k, table_RP, lens_R, scale, width)
    return column_scores(q_RHwD, k, table_RP, lens_R, lse, scale, width)
