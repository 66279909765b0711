"""The tile loop of the two prefill kernels, and their launch.

Queries of all heads of a row are packed, n x G of them, so keys and values are read once for the group whatever n is.
Entries come from pages or, PAGE 0, from one tensor with strides. Query i of n stands at entry p = m - n + i.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.state import State
from kvfoot.attention.triton import common
from kvfoot.attention.triton.common import Launch, fetch, join, offset_of, page_of


@triton.jit
def sweep(
    m,
    l,
    acc,
    q,
    p,
    lo,
    hi,
    n,
    sink,
    window,
    k,
    v,
    table,
    k_pitch,
    v_pitch,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    PAGE: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Softmax state after the entries [lo, hi) of n; p: the queries' own entries, of which CAUSAL and WINDOW speak.

    Not MASKED: whole tiles that all queries see.
    """
    i = tl.arange(0, BN)
    page = page_of(table, lo + i, lo + i < n, PAGE)
    for at in tl.range(lo, hi, BN, num_stages=STAGES):
        j = at + i
        ok = j < n
        k_offset = offset_of(page, at, i, k_pitch, PAGE, BN)
        v_offset = offset_of(page, at, i, v_pitch, PAGE, BN)
        page = page_of(table, j + BN, j + BN < n, PAGE)
        k_ND = fetch(k, k_offset, ok, D, DP, UPCAST)
        v_ND = fetch(v, v_offset, ok, D, DP, UPCAST)
        s = tl.dot(q, tl.trans(k_ND), input_precision=PRECISION) * scale
        if MASKED:
            seen = ok[None, :]
            if CAUSAL:
                seen = seen & (j[None, :] <= p[:, None])
            if WINDOW:
                seen = seen & ((j[None, :] < sink) | (j[None, :] > p[:, None] - window))
            s = tl.where(seen, s, -float("inf"))
        m, a, w, l = join(m, l, s)
        acc = acc * a[:, None]
        acc = tl.dot(w.to(v_ND.dtype), v_ND, acc, input_precision=PRECISION)
    return m, l, acc


@triton.jit
def finish(m, l, acc, out, out_lse, at, ok, D: tl.constexpr, DP: tl.constexpr, LN2: tl.constexpr):
    """Store the state of queries `at`; one that saw nothing has 0 and -inf."""
    d = tl.arange(0, DP)
    some = l > 0.0
    whole = tl.where(some, l, 1.0)
    inside = ok[:, None] & (d[None, :] < D)
    tl.store(out + at[:, None] * D + d[None, :], (acc / whole[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(out_lse + at, tl.where(some, (m + tl.log2(whole)) * LN2, -float("inf")), mask=ok)


def launch(head_size: int, dtype: torch.dtype, queries: int) -> Launch:
    """queries: all of a row, n x G."""
    if dtype == torch.float32 and head_size > 128:
        return Launch(entries=16, warps=8, stages=2, queries=16)
    if dtype == torch.float32:
        return Launch(entries=32, warps=4 if head_size <= 64 else 8, stages=2, queries=32)
    if head_size > 128:
        return Launch(entries=32, warps=8, stages=2, queries=64 if queries <= 64 else 128)
    if queries <= 64:
        return Launch(entries=64, warps=4, stages=2, queries=64)
    return Launch(entries=64, warps=8, stages=3, queries=128)


def arguments(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, lens: Tensor | None, scale: float, how: Launch | None
) -> tuple[State, tuple[int, int], list[Tensor | int | float], dict[str, object]]:
    """Output, grid, and what both kernels are launched with. k, v: pages with `table`, or [R, m, D] without."""
    R, H, n, D = q.shape
    page = None if table is None else k.shape[1]
    common.check(q, k, page, H)
    q, k, v = (common.unit(x) for x in (q, k, v))
    if table is not None:
        common.pages(k, v)
        table = common.narrow(table)
    how = how or launch(D, k.dtype, n * H)
    state = State(common.result((R, H, n, D), q.dtype, q.device), common.scratch((R, H, n), torch.float32, q.device))
    strides = [D, 0, D, 0] if table is not None else [k.stride(1), k.stride(0), v.stride(1), v.stride(0)]
    given: list[Tensor | int | float] = [
        q,
        k,
        v,
        state.lse if table is None else table,
        state.lse if lens is None else lens,
        state.out,
        state.lse,
        n,
        0 if lens is not None else k.shape[1],
        0 if table is None else table.stride(0),
        *q.stride()[:3],
        *strides,
        scale * common.LOG2E,
    ]
    constants = {
        "G": H,
        "D": D,
        "DP": common.padded(D),
        "PAGE": page or 0,
        "RAGGED": lens is not None,
        "BM": how.queries,
        "BN": how.entries,
        "STAGES": how.stages,
        "PRECISION": common.precision(k.dtype, D),
        "UPCAST": common.upcast(k.dtype),
        "LN2": common.LN2,
        "num_warps": how.warps,
    }
    return state, (triton.cdiv(n * H, how.queries), R), given, constants
