"""A step's new keys, values and positions into their slots, queries and keys rotated on the way (naive_layer.store).

One launch, a program per row: where the model's own code would take RoPE's dozen and a copy for each plane.
"""

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.naive_layer import Target, Turn
from kvfoot.attention.triton import common
from kvfoot.attention.triton.append import words
from kvfoot.core.errors import UsageError


@triton.jit
def turned(x, y, c, s, kind: tl.constexpr, ROUND: tl.constexpr, EMULATE: tl.constexpr):
    """x c + y s; both products and their sum are rounded where the model computes them in `kind`."""
    a = x.to(tl.float32) * c
    b = y.to(tl.float32) * s
    if ROUND:
        a = common.rounded(a, kind, EMULATE)
        b = common.rounded(b, kind, EMULATE)
    return common.rounded(a + b, kind, EMULATE).to(kind)


@triton.jit
def store_kernel(
    q,
    k,
    v,
    cos,
    sin,
    out,
    k_slots,
    v_slots,
    position_slots,
    slots,
    position,
    kv_heads,
    q_head,
    q_token,
    k_head,
    k_token,
    v_head,
    v_token,
    turn_token,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    HALF: tl.constexpr,
    TURN: tl.constexpr,
    PLACE: tl.constexpr,
    ROUND: tl.constexpr,
    EMULATE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    token = row // kv_heads
    head = row % kv_heads
    slot = tl.load(slots + row).to(tl.int64)
    d = tl.arange(0, DP)
    value = tl.load(v + head * v_head + token * v_token + d, mask=d < D)
    tl.store(v_slots + slot * D + d, value, mask=d < D)
    if PLACE:
        tl.store(position_slots + slot, tl.load(position + token).to(tl.int32))
    key = k + head * k_head + token * k_token
    if TURN:
        i = tl.arange(0, HALF)
        ok = i < D // 2
        kind: tl.constexpr = out.dtype.element_ty
        angle = token * turn_token + i
        c_low = tl.load(cos + angle, mask=ok, other=0.0).to(tl.float32)
        s_low = tl.load(sin + angle, mask=ok, other=0.0).to(tl.float32)
        c_high = tl.load(cos + angle + D // 2, mask=ok, other=0.0).to(tl.float32)
        s_high = tl.load(sin + angle + D // 2, mask=ok, other=0.0).to(tl.float32)
        low = tl.load(key + i, mask=ok, other=0.0)
        high = tl.load(key + D // 2 + i, mask=ok, other=0.0)
        place = k_slots + slot * D + i
        tl.store(place, turned(low, high, c_low, -s_low, kind, ROUND, EMULATE), mask=ok)
        tl.store(place + D // 2, turned(high, low, c_high, s_high, kind, ROUND, EMULATE), mask=ok)
        g = tl.arange(0, GP)
        inside = (g[:, None] < G) & ok[None, :]
        query = q + (head * G + g[:, None]) * q_head + token * q_token + i[None, :]
        low = tl.load(query, mask=inside, other=0.0)
        high = tl.load(query + D // 2, mask=inside, other=0.0)
        place = out + (row * G + g[:, None]) * D + i[None, :]
        first = turned(low, high, c_low[None, :], -s_low[None, :], kind, ROUND, EMULATE)
        second = turned(high, low, c_high[None, :], s_high[None, :], kind, ROUND, EMULATE)
        tl.store(place, first, mask=inside)
        tl.store(place + D // 2, second, mask=inside)
    else:
        tl.store(k_slots + slot * D + d, tl.load(key + d, mask=d < D), mask=d < D)


def store(
    q: Tensor, k: Tensor, v: Tensor, turn: Turn | None, slots_R: Tensor, position_B: Tensor, target: Target
) -> Tensor:
    """See naive_layer.store; equal to it bit for bit. Without `turn` rows of q are a view where they can be.

    Raises UsageError for entries of another dtype than the arena's.
    """
    if not k.dtype == v.dtype == target.k.dtype:
        raise UsageError(f"entries of {k.dtype} and {v.dtype} do not fit pages of {target.k.dtype}")
    _, kv_heads, B, D = k.shape
    R, group = len(slots_R), q.shape[1] // kv_heads
    q, k, v = (common.unit(x) for x in (q, k, v))
    common.pages(target.k, target.v)
    rows = q[0].view(kv_heads, group, B, D).permute(2, 0, 1, 3).flatten(0, 1)
    out = rows if turn is None else common.scratch((R, group, D), q.dtype, q.device)
    cos, sin = (q, q) if turn is None else (common.unit(turn.cos), common.unit(turn.sin))
    key, pages = (words(x) if turn is None else x for x in (k, target.k))  # bits, where nothing is computed
    store_kernel[(R,)](
        q,
        key,
        words(v),
        cos,
        sin,
        out,
        pages,
        words(target.v),
        target.v if target.positions is None else target.positions,
        slots_R,
        position_B,
        kv_heads,
        q.stride(1),
        q.stride(2),
        k.stride(1),
        k.stride(2),
        v.stride(1),
        v.stride(2),
        cos.stride(1),
        G=group,
        GP=common.padded(group, 1),
        D=D,
        DP=common.padded(D, 1),
        HALF=common.padded(D // 2, 1),
        TURN=turn is not None,
        PLACE=target.positions is not None,
        ROUND=turn is not None and turn.cos.dtype == q.dtype,
        EMULATE=common.INTERPRET,
        num_warps=2,
        enable_fp_fusion=False,  # a fused product and sum rounds once where the model rounds twice
    )
    return out
