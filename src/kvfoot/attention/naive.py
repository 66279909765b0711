"""Every attention operation by its definition, in plain torch and fp32 (decision D9). All else is judged against this.

R rows (KV heads), H query heads per row, n queries, m entries, D head size. Queries are the last n of the row's
positions where `causal` is set: query i sees entries [0, m - n + i] (bottom-right alignment, prulong trap 26).
"""

import torch
from torch import Tensor

from kvfoot.attention.state import State

name = "naive"


def logits(q_RHnD: Tensor, k_RmD: Tensor, scale: float, causal: bool) -> Tensor:
    """fp32 [R, H, n, m]; -inf where a query does not see an entry."""
    s_RHnm = torch.einsum("rhnd,rmd->rhnm", q_RHnD.float(), k_RmD.float()) * scale
    n, m = s_RHnm.shape[-2:]
    if causal:
        seen = torch.ones(n, m, dtype=torch.bool, device=s_RHnm.device).tril(m - n)
        s_RHnm = s_RHnm.masked_fill(~seen, -torch.inf)
    return s_RHnm


def attend(q_RHnD: Tensor, k_RmD: Tensor, v_RmD: Tensor, scale: float, causal: bool) -> State:
    """Softmax attention: out fp32 [R, H, n, D], lse fp32 [R, H, n]."""
    s_RHnm = logits(q_RHnD, k_RmD, scale, causal)
    lse_RHn = s_RHnm.logsumexp(-1)
    p_RHnm = (s_RHnm - lse_RHn[..., None]).exp()
    return State(torch.einsum("rhnm,rmd->rhnd", p_RHnm, v_RmD.float()), lse_RHn)


def window_scores(q_RHwD: Tensor, k_RmD: Tensor, scale: float) -> Tensor:
    """Attention mass that the last w queries put on each of m entries, softmax over those m: fp32 [R, H, m]."""
    return logits(q_RHwD, k_RmD, scale, causal=True).softmax(-1).sum(-2)


def column_scores(q_RHnD: Tensor, k_RmD: Tensor, lse_RHn: Tensor, scale: float) -> Tensor:
    """The same for n queries whose normalisers are known: fp32 [R, H, m]."""
    return (logits(q_RHnD, k_RmD, scale, causal=True) - lse_RHn[..., None]).exp().sum(-2)
