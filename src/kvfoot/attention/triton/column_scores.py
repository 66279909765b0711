"""Attention mass per entry from causal queries whose normalisers are known (naive.column_scores, naive_paged too).

One program has one tile of entries and walks over the queries that see it: no atomics, O(m) output, nothing n x m.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common
from kvfoot.attention.triton.common import Launch, fetch, offset_of, page_of


@triton.jit
def column_scores_kernel(
    q,
    k,
    table,
    lens,
    lse,
    score,
    n,
    m_all,
    width,
    table_pitch,
    q_row,
    q_head,
    q_query,
    k_pitch,
    k_row,
    scale,
    LOG2E: tl.constexpr,
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
    row = tl.program_id(1).to(tl.int64)
    m_row = m_all
    if RAGGED:
        m_row = tl.load(lens + row).to(tl.int32)
    j0 = tl.program_id(0) * BN
    j = j0 + tl.arange(0, BN)
    ok = j < m_row
    page = page_of(table + row * table_pitch, j, ok, PAGE)
    k_ND = fetch(k + row * k_row, offset_of(page, j0, tl.arange(0, BN), k_pitch, PAGE, BN), ok, D, DP, UPCAST)
    first = tl.maximum(j0 - (m_row - n), 0) // BM * BM  # the first query that sees the tile
    stop = tl.where(j0 < m_row, n, first)
    for g in range(0, G):
        total = tl.zeros([BN], tl.float32)
        g64 = tl.full([], 0, tl.int64) + g
        for at in tl.range(first, stop, BM, num_stages=STAGES):
            i = at + tl.arange(0, BM)
            real = i < n
            q_MD = fetch(q, row * q_row + g64 * q_head + i.to(tl.int64) * q_query, real, D, DP, UPCAST)
            norm = tl.load(lse + (row * G + g64) * n + i, mask=real, other=float("inf")) * LOG2E
            s = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale
            seen = real[:, None] & (j[None, :] <= (m_row - n + i)[:, None])
            total += tl.sum(tl.where(seen, tl.exp2(s - norm[:, None]), 0.0), 0)
        tl.store(score + (row * G + g64) * width + j, tl.where(ok, total, 0.0), mask=j < width)


def launch(head_size: int, dtype: torch.dtype, queries: int) -> Launch:
    if dtype == torch.float32 and head_size > 64:
        small = head_size > 128
        return Launch(entries=16 if small else 64, warps=8, stages=2, queries=16 if small else 32)
    if dtype == torch.float32 or head_size > 128:
        return Launch(entries=32, warps=4, stages=2, queries=32)
    return Launch(entries=128, warps=4, stages=2, queries=64 if queries > 32 else 32)


def column_scores(
    q_RHnD: Tensor,
    k: Tensor,
    table_RP: Tensor | None,
    lens_R: Tensor | None,
    lse_RHn: Tensor,
    scale: float,
    width: int | None = None,
    how: Launch | None = None,
) -> Tensor:
    """fp32 [R, H, width], 0 beyond a row's entries. k: pages with table and lengths, or [R, m, D] with neither.

    width >= every length; m if not given.
    """
    R, H, n, D = q_RHnD.shape
    page = None if table_RP is None else k.shape[1]
    common.check(q_RHnD, k, page, H)
    if table_RP is not None:
        common.pages(k)
        table_RP = common.narrow(table_RP)
    q, k = common.unit(q_RHnD), common.unit(k)
    m = k.shape[1] if table_RP is None else 0
    wide = m if width is None else width
    score = common.scratch((R, H, wide), torch.float32, q.device)
    how = how or launch(D, k.dtype, n)
    column_scores_kernel[(triton.cdiv(wide, how.entries), R)](
        q,
        k,
        score if table_RP is None else table_RP,
        score if lens_R is None else lens_R,
        lse_RHn.contiguous(),
        score,
        n,
        m,
        wide,
        0 if table_RP is None else table_RP.stride(0),
        *q.stride()[:3],
        *((k.stride(1), k.stride(0)) if table_RP is None else (D, 0)),
        scale * common.LOG2E,
        LOG2E=common.LOG2E,
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
    return score
