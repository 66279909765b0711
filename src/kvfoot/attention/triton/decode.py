"""One query per head against ragged rows: the memory-bound kernel of a decode step (naive_paged.decode).

A row is one KV head of one sequence and its G query heads are one tile, so keys and values are read once. The entries
of all rows are cut into tiles and shared out evenly (plan.py): a single 128K row fills the device as 192 short ones do.
Each program leaves a normalised part and its lse per row it touched; merge.py joins them.

The page table is read one tile ahead of its use: with the load inside the iteration, Triton's pipeliner keeps a single
buffer of keys and values, with it ahead there are `stages` - 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.state import State
from kvfoot.attention.triton import common
from kvfoot.attention.triton.common import Launch, fetch, offset_of, page_of
from kvfoot.attention.triton.locate import locate
from kvfoot.attention.triton.merge import merge
from kvfoot.attention.triton.plan import Plan, plan


@triton.jit
def decode_kernel(
    q,
    k,
    v,
    table,
    lens,
    tiles,
    first,
    part,
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
    EMIT: tl.constexpr,
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
            l_GN = tl.zeros([GP, BN], tl.float32)  # summed over entries once, at the end
            acc = tl.zeros([GP, DP], tl.float32)
            page = page_of(row_table, lo + i, lo + i < hi, PAGE)
            for at in tl.range(lo, hi, BN, num_stages=STAGES):
                j = at + i
                ok = j < hi
                offset = offset_of(page, at, i, D, PAGE, BN)
                page = page_of(row_table, j + BN, j + BN < hi, PAGE)
                k_ND = fetch(k, offset, ok, D, DP, UPCAST)
                v_ND = fetch(v, offset, ok, D, DP, UPCAST)
                s = tl.dot(q_GD, tl.trans(k_ND), input_precision=PRECISION) * scale
                if EMIT:
                    out = row_score + g[:, None].to(tl.int64) * score_head + j[None, :]
                    tl.store(out, s, mask=(g[:, None] < G) & ok[None, :])
                s = tl.where(ok[None, :], s, -float("inf"))
                m_new = tl.maximum(m, tl.max(s, 1))
                a = tl.exp2(m - m_new)
                w = tl.exp2(s - m_new[:, None])
                l_GN = l_GN * a[:, None] + w
                m = m_new
                acc = acc * a[:, None] + tl.dot(w.to(v_ND.dtype), v_ND, input_precision=PRECISION)
            l = tl.sum(l_GN, 1)
            slot = (p + row64) * G + g
            d = tl.arange(0, DP)
            inside = (g[:, None] < G) & (d[None, :] < D)
            tl.store(part + slot[:, None] * D + d[None, :], acc / l[:, None], mask=inside)
            tl.store(part_lse + slot, m + tl.log2(l), mask=g < G)


def launch(head_size: int, dtype: torch.dtype) -> Launch:
    if head_size > 128 and dtype == torch.float32:
        return Launch(entries=16, warps=8, stages=2, per_sm=2)
    if head_size > 128 or dtype == torch.float32:
        return Launch(entries=32, warps=4, stages=3, per_sm=2, registers=240)
    if head_size <= 64:
        return Launch(entries=64, warps=4, stages=4, per_sm=3, registers=168)
    return Launch(entries=64, warps=8, stages=3, per_sm=2, registers=128)


def programs(how: Launch, device: torch.device) -> int:
    return how.per_sm * common.multiprocessors(device)


def planned(lens_LR: Tensor, head_size: int, dtype: torch.dtype, how: Launch | None = None) -> Plan:
    """The plan of a step's layers, for `decode` layer by layer."""
    how = how or launch(head_size, dtype)
    return plan(lens_LR, how.entries, programs(how, lens_LR.device))


def decode(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    *,
    plan: Plan | None = None,
    read_RK: Tensor | None = None,
    how: Launch | None = None,
) -> State:
    """Attention of one query per head over lens_R entries of each row, or over entries read_RK[r, : lens_R[r]].

    table_RP page numbers, best in int32 (int64 is converted); lens_R int32 or int64. out [R, H, D] in the queries'
    dtype, lse fp32 [R, H].
    plan: of this layer; made here if not given. An empty row has out = 0, lse = -inf. A list that serves many steps
    is located once (locate.py) and then is the table of the same arena seen as pages of one entry.
    """
    return _run(q_RHD, k_pages, v_pages, table_RP, lens_R, scale, plan, read_RK, None, how)


def decode_emitting(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    width: int,
    *,
    plan: Plan | None = None,
    read_RK: Tensor | None = None,
    how: Launch | None = None,
    logits: bool = False,
) -> tuple[State, Tensor]:
    """The same, and the softmax weights fp32 [R, H, width], 0 beyond a row's entries; width >= every length.

    `logits`: as they are, in base 2, undefined beyond a row's entries, and not gone over once more.
    """
    score = common.scratch((*q_RHD.shape[:2], width), torch.float32, q_RHD.device)
    state = _run(q_RHD, k_pages, v_pages, table_RP, lens_R, scale, plan, read_RK, score, how, weigh=not logits)
    return state, score


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    lens: Tensor,
    scale: float,
    given: Plan | None,
    read: Tensor | None,
    score: Tensor | None,
    how: Launch | None,
    weigh: bool = False,
) -> State:
    R, H, D = q.shape
    common.check(q, k, k.shape[1], H)
    common.pages(k, v)
    if read is not None:
        table = locate(table, read, lens, k.shape[1])
        k, v = k.view(-1, 1, D), v.view(-1, 1, D)
    how = how or launch(D, k.dtype)
    made = given or planned(lens[None], D, k.dtype, how)
    q, table = common.unit(q), common.narrow(table)
    slots = made.programs + R
    part = common.scratch((slots, H, D), torch.float32, q.device)
    part_lse = common.scratch((slots, H), torch.float32, q.device)
    decode_kernel[(made.programs,)](
        q,
        k,
        v,
        table,
        lens,
        made.tiles,
        made.first,
        part,
        part_lse,
        part_lse if score is None else score,
        R,
        table.stride(0),
        q.stride(0),
        q.stride(1),
        0 if score is None else score.stride(0),
        0 if score is None else score.stride(1),
        scale * common.LOG2E,
        G=H,
        GP=common.padded(H),
        D=D,
        DP=common.padded(D),
        PAGE=k.shape[1],
        BN=made.tile,
        STAGES=how.stages,
        EMIT=score is not None,
        PRECISION=common.precision(k.dtype, D),
        UPCAST=common.upcast(k.dtype),
        maxnreg=how.registers,
        num_warps=how.warps,
    )
    return merge(part, part_lse, made, q.dtype, score if weigh else None, lens)
