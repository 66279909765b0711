"""Queries of a chunk against ragged rows, in pages or in one tensor (naive_paged.prefill, naive.attend).

With the chunk appended first, `causal` serves history and chunk in one launch; without, the history alone is attended
to and the chunk's own square joins by log-sum-exp.
"""

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.state import State
from kvfoot.attention.triton.common import Launch, fetch
from kvfoot.attention.triton.prefill import arguments, finish, sweep


@triton.jit
def chunk_prefill_kernel(
    q,
    k,
    v,
    table,
    lens,
    out,
    out_lse,
    n,
    m_all,
    table_pitch,
    q_row,
    q_head,
    q_query,
    k_pitch,
    k_row,
    v_pitch,
    v_row,
    scale,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    PAGE: tl.constexpr,
    RAGGED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    LN2: tl.constexpr,
):
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    row = tl.program_id(1).to(tl.int64)
    m_row = m_all
    if RAGGED:
        m_row = tl.load(lens + row).to(tl.int32)
    x = block * BM + tl.arange(0, BM)
    ok = x < n * G
    i = x // G
    g = x % G
    p = m_row - n + i
    q_MD = fetch(q, row * q_row + g.to(tl.int64) * q_head + i.to(tl.int64) * q_query, ok, D, DP, UPCAST)
    k += row * k_row
    v += row * v_row
    table += row * table_pitch
    m = tl.full([BM], -float("inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    if CAUSAL:
        low = tl.maximum(m_row - n + block * BM // G + 1, 0)  # entries that all of the block's queries see
        high = tl.minimum(m_row - n + tl.minimum((block * BM + BM - 1) // G, n - 1) + 1, m_row)
        middle = low // BN * BN
        m, l, acc = sweep(
            m, l, acc, q_MD, p, 0, middle, m_row, 0, 0, k, v, table, k_pitch, v_pitch, scale,
            D, DP, PAGE, BN, STAGES, False, False, False, PRECISION, UPCAST,
        )  # fmt: skip
        m, l, acc = sweep(
            m, l, acc, q_MD, p, middle, high, m_row, 0, 0, k, v, table, k_pitch, v_pitch, scale,
            D, DP, PAGE, BN, STAGES, True, True, False, PRECISION, UPCAST,
        )  # fmt: skip
    else:
        m, l, acc = sweep(
            m, l, acc, q_MD, p, 0, m_row, m_row, 0, 0, k, v, table, k_pitch, v_pitch, scale,
            D, DP, PAGE, BN, STAGES, True, False, False, PRECISION, UPCAST,
        )  # fmt: skip
    at = (row * G + g) * n + i
    finish(m, l, acc, out, out_lse, at, ok, D, DP, LN2)


def chunk_prefill(
    q_RHnD: Tensor,
    k: Tensor,
    v: Tensor,
    table_RP: Tensor | None,
    lens_R: Tensor | None,
    scale: float,
    causal: bool,
    how: Launch | None = None,
) -> State:
    """out [R, H, n, D] in the queries' dtype, lse fp32 [R, H, n].

    k, v: pages [pages, page_size, D] with a table, or [R, m, D] with neither table nor lengths.
    """
    state, grid, given, constants = arguments(q_RHnD, k, v, table_RP, lens_R, scale, how)
    chunk_prefill_kernel[grid](*given, CAUSAL=causal, **constants)
    return State(state.out.to(q_RHnD.dtype), state.lse)
