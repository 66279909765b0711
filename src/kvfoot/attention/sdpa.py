"""The same operations through torch's fused attention, on a CPU and on a GPU, without a mask of queries x entries.

Two facts carry it: parts join by log-sum-exp, so a chunk is history (no mask) plus itself (square causal); and where no
mask is needed, the H query heads of a KV head are H times as many queries of one head, so that keys are read once.
"""

import torch
from torch import Tensor

from kvfoot.attention.state import State, merge
from kvfoot.core.errors import UsageError

name = "sdpa"
BLOCK_ELEMENTS = 1 << 23
"""Largest block of logits, in fp32 elements (32 MiB), that window scores make at once."""
SCORE_ELEMENTS = 1 << 22
"""The same for column scores (16 MiB): blocks that stay in a cache are faster."""


def attend(q_RHnD: Tensor, k_RmD: Tensor, v_RmD: Tensor, scale: float, causal: bool) -> State:
    """See naive.attend; out has the queries' dtype where the kernel's has."""
    R, H, n, D = q_RHnD.shape
    m = k_RmD.shape[1]
    if causal and n > 1:
        tail = _square(q_RHnD, k_RmD[:, m - n :], v_RmD[:, m - n :], scale)
        return tail if m == n else merge(attend(q_RHnD, k_RmD[:, : m - n], v_RmD[:, : m - n], scale, False), tail)
    state = _fused(q_RHnD.reshape(1, R, H * n, D), k_RmD[None], v_RmD[None], scale, False)
    return State(state.out.view(R, H, n, D), state.lse.view(R, H, n))


def _square(q_RHnD: Tensor, k_RnD: Tensor, v_RnD: Tensor, scale: float) -> State:
    R, H, n, D = q_RHnD.shape
    k, v = (x[:, None].expand(R, H, n, D) for x in (k_RnD, v_RnD))
    return _fused(q_RHnD, k, v, scale, True)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> State:
    """One fused call over [batch, heads, length, D]; causal only where queries and entries are the same positions."""
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return State(out, lse)
    if q.device.type != "cuda":
        raise UsageError(f"the sdpa backend runs on cpu and cuda, not on {q.device.type}: use the naive backend")
    if q.dtype in (torch.float16, torch.bfloat16):
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    else:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
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
