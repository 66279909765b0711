"""The same operations through torch's fused attention, on a CPU and on a GPU, without a mask of queries x entries.

Two facts carry it: parts join by log-sum-exp, so a chunk is history (no mask) plus itself (square causal); and where no
mask is needed, the H query heads of a KV head are H times as many queries of one head, so that keys are read once.
"""

import numpy as np
import torch
from torch import Tensor

from kvfoot.attention.emitted import emitted
from kvfoot.attention.naive_bounds import reach, widen
from kvfoot.attention.overwrite import move, replace, tally
from kvfoot.attention.padded import paged, planned
from kvfoot.attention.pieces import join, piecewise
from kvfoot.attention.rings import push, refill
from kvfoot.attention.state import Ragged, State, merge
from kvfoot.core.errors import UsageError

__all__ = [
    "attend",
    "column_scores",
    "decode",
    "emitted",
    "gathered",
    "join",
    "move",
    "name",
    "paged",
    "piecewise",
    "planned",
    "push",
    "reach",
    "refill",
    "replace",
    "tally",
    "widen",
    "window_scores",
]
name = "sdpa"
BLOCK_ELEMENTS = 1 << 23
"""Largest block of logits, in fp32 elements (32 MiB), that window scores make at once."""
SCORE_ELEMENTS = 1 << 22
"""The same for column scores (16 MiB): blocks that stay in a cache are faster."""

PAD_ELEMENTS = 1 << 16
"""Padding, in elements of keys, that one more call would cost as much as: about 60 us on a CPU core."""


def attend(
    q_RHnD: Tensor, k_RmD: Tensor, v_RmD: Tensor, scale: float, causal: bool, visible: Tensor | None = None
) -> State:
    """See naive.attend; out has the queries' dtype where the kernel's has."""
    R, H, n, D = q_RHnD.shape
    m = k_RmD.shape[1]
    if visible is not None:
        k, v = (x[:, None].expand(R, H, m, D) for x in (k_RmD, v_RmD))
        return _fused(q_RHnD, k, v, scale, False, _bias(visible, q_RHnD.dtype).expand(R, H, n, m))
    if causal and n > 1:
        tail = _square(q_RHnD, k_RmD[:, m - n :], v_RmD[:, m - n :], scale)
        return tail if m == n else merge(attend(q_RHnD, k_RmD[:, : m - n], v_RmD[:, : m - n], scale, False), tail)
    state = _fused(q_RHnD.reshape(1, R, H * n, D), k_RmD[None], v_RmD[None], scale, False)
    return State(state.out.view(R, H, n, D), state.lse.view(R, H, n))


def _square(q_RHnD: Tensor, k_RnD: Tensor, v_RnD: Tensor, scale: float) -> State:
    R, H, n, D = q_RHnD.shape
    k, v = (x[:, None].expand(R, H, n, D) for x in (k_RnD, v_RnD))
    return _fused(q_RHnD, k, v, scale, True)


def decode(q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor, rows: Ragged, scale: float) -> State:
    """See naive.decode: one call for all rows of about the same length, the shorter padded and masked."""
    R, H, D = q_RHD.shape
    size = k_pages.shape[1]
    flat_k, flat_v = k_pages.view(len(k_pages), -1), v_pages.view(len(v_pages), -1)
    parts = _alike(rows.lens, D)
    if len(parts) > 1:
        out, lse = torch.empty_like(q_RHD), torch.empty(R, H, dtype=torch.float32, device=q_RHD.device)
    for index in parts:
        lens = rows.lens[index]
        m = int(lens.max())
        whole = len(parts) == 1
        pick = slice(None) if whole else torch.from_numpy(index).to(q_RHD.device)
        ids = rows.pages[pick, : -(-m // size)].reshape(-1)
        k, v = (x.index_select(0, ids).view(len(index), -1, D) for x in (flat_k, flat_v))
        bias = None
        if (lens == m).all():
            k, v = k[:, :m], v[:, :m]
        else:
            absent = np.arange(k.shape[1]) >= lens[:, None]
            places = torch.from_numpy(np.flatnonzero(absent)).to(k.device)
            k, v = (x.view(-1, D).index_fill_(0, places, 0).view_as(x) for x in (k, v))  # what lies there may be NaN
            bias = _bias(torch.from_numpy(~absent[:, None]).to(k.device), q_RHD.dtype).transpose(0, 1)
            bias = bias.expand(1, len(index), H, -1)
        state = _fused(q_RHD[pick][None], k[None], v[None], scale, False, bias)
        state = State(state.out[0], state.lse[0])
        if whole:
            return state
        out[pick], lse[pick] = state.out, state.lse
    return State(out, lse)


def gathered(q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor, slots_Rm: Tensor, scale: float) -> State:
    """See naive.gathered."""
    R, m = slots_Rm.shape
    k, v = (x.view(-1, x.shape[2]).index_select(0, slots_Rm.reshape(-1)).view(1, R, m, -1) for x in (k_pages, v_pages))
    state = _fused(q_RHD[None], k, v, scale, False)
    return State(state.out[0], state.lse[0])


def _alike(lens: np.ndarray, width: int) -> list[np.ndarray]:
    """Row numbers in groups: a group's padding costs less than a call of its own would."""
    order = np.argsort(-lens, kind="stable")
    groups, first, waste = [], 0, 0
    for i, row in enumerate(order):
        waste += int(lens[order[first]] - lens[row])
        if waste * width > PAD_ELEMENTS:
            groups.append(order[first:i])
            first, waste = i, 0
    return [*groups, order[first:]] if groups else [np.arange(len(lens))]


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """bool [R or 1, n, m] to what is added to logits, 0 or -inf, [R or 1, 1, n, m].

    Its rows start at multiples of 8 elements, as the kernel on CUDA asks.
    """
    R, n, m = visible.shape
    bias = torch.zeros(R, 1, n, -(-m // 8) * 8, dtype=dtype, device=visible.device)[..., :m]
    return bias.masked_fill_(~visible[:, None], -torch.inf)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None = None) -> State:
    """One fused call over [batch, heads, length, D]; causal only where queries and entries are the same positions."""
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
        return State(out, lse)
    if q.device.type != "cuda":
        raise UsageError(f"the sdpa backend runs on cpu and cuda, not on {q.device.type}: use the naive backend")
    if bias is None and q.dtype in (torch.float16, torch.bfloat16):
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    else:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, causal, scale=scale)
        lse = lse[..., : q.shape[2]]
    return State(out, lse)


def window_scores(q_RHwD: Tensor, k_RmD: Tensor, scale: float) -> Tensor:
    """See naive.window_scores; row by row where the logits of all rows would be large."""
    R, H, w, D = q_RHwD.shape
    m = k_RmD.shape[1]
    if R > 1 and R * H * w * m > BLOCK_ELEMENTS:
        return torch.cat([window_scores(q_RHwD[r : r + 1], k_RmD[r : r + 1], scale) for r in range(R)])
    q = (q_RHwD.float() * scale).reshape(R, H * w, D)
    s_RHwm = torch.bmm(q, k_RmD.float().mT).view(R, H, w, m)
    unseen = torch.ones(w, w, dtype=torch.bool, device=q.device).triu(1)
    s_RHwm[..., m - w :].masked_fill_(unseen, -torch.inf)
    return s_RHwm.softmax(-1).sum(2)


def column_scores(q_RHnD: Tensor, k_RmD: Tensor, lse_RHn: Tensor, scale: float) -> Tensor:
    """See naive.column_scores: the history without a mask, in blocks of queries; the pass's own square by definition.

    The normaliser rides in the product: [q * scale, -lse] . [k, 1] is the logarithm of the weight.
    """
    R, H, n, _ = q_RHnD.shape
    m = k_RmD.shape[1]
    old = m - n
    total = torch.zeros(R, H, m, device=q_RHnD.device)
    step = max(1, SCORE_ELEMENTS // (R * H * m))
    q = torch.cat([q_RHnD.float() * scale, -lse_RHn[..., None]], -1)
    k = torch.cat([k_RmD.float(), k_RmD.new_ones(R, m, 1, dtype=torch.float32)], -1)
    for a in range(0, n, step):
        b = min(a + step, n)
        flat = q[:, :, a:b].reshape(R, H * (b - a), -1)
        if old:
            total[..., :old] += torch.bmm(flat, k[:, :old].mT).exp_().view(R, H, b - a, old).sum(2)
        seen = torch.ones(b - a, b, dtype=torch.bool, device=q.device).tril(a)
        own = torch.bmm(flat, k[:, old : old + b].mT).view(R, H, b - a, b)
        total[..., old : old + b] += own.masked_fill_(~seen, -torch.inf).exp_().sum(2)
    return total
