"""Streaming heads: causal queries that see the sinks and a window only (naive_paged.prefill with sink and window).

Tiles that no query of a block sees are not visited: the cost is n x (sink + window), not n x m. The rule speaks of
entries, not of positions: in a row of [0, sink) and a run of the newest positions, p - window counts alike in both.
"""

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.state import State
from kvfoot.attention.triton.common import Launch, fetch
from kvfoot.attention.triton.prefill import arguments, finish, sweep
from kvfoot.core.errors import UsageError


@triton.jit
def stream_prefill_kernel(
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
    sink,
    window,
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
    LN2: tl.constexpr,
):
    block = tl.num_programs(0) - 1 - tl.program_id(0)
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
    first = m_row - n + block * BM // G
    last = m_row - n + tl.minimum((block * BM + BM - 1) // G, n - 1)
    high = tl.minimum(last + 1, m_row)
    near = tl.maximum(first - window + 1, 0) // BN * BN  # the oldest tile in a window
    sinks = tl.minimum(tl.minimum(sink, high), near)
    m, l, acc = sweep(
        m, l, acc, q_MD, p, 0, sinks, m_row, sink, window, k, v, table, k_pitch, v_pitch, scale,
        D, DP, PAGE, BN, STAGES, True, True, True, PRECISION, UPCAST,
    )  # fmt: skip
    m, l, acc = sweep(
        m, l, acc, q_MD, p, near, high, m_row, sink, window, k, v, table, k_pitch, v_pitch, scale,
        D, DP, PAGE, BN, STAGES, True, True, True, PRECISION, UPCAST,
    )  # fmt: skip
    at = (row * G + g) * n + i
    finish(m, l, acc, out, out_lse, at, ok, D, DP, LN2)


def stream_prefill(
    q_RHnD: Tensor,
    k: Tensor,
    v: Tensor,
    table_RP: Tensor | None,
    lens_R: Tensor | None,
    scale: float,
    sink: int,
    window: int,
    how: Launch | None = None,
) -> State:
    """As chunk_prefill with causal queries; query at entry p sees entries [0, sink) and (p - window, p]."""
    if sink < 0 or window < 1:
        raise UsageError(f"sink={sink}, window={window}: give sink >= 0 and window >= 1")
    state, grid, given, constants = arguments(q_RHnD, k, v, table_RP, lens_R, scale, how)
    stream_prefill_kernel[grid](*given, sink, window, **constants)
    return State(state.out.to(q_RHnD.dtype), state.lse)
