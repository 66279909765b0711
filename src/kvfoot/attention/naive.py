"""Every attention operation by its definition, in plain torch and fp32 (decision D9). All else is judged against this.

R rows (KV heads), H query heads per row, n queries, m entries, D head size. Queries are the last n of the row's
positions where `causal` is set: query i sees entries [0, m - n + i] (bottom-right alignment, prulong trap 26).
Where `visible`, bool [R or 1, n, m], is given, it alone says which entries a query sees.
"""

import torch
from torch import Tensor

from kvfoot.attention.emitted import emitted
from kvfoot.attention.naive_bounds import reach, widen
from kvfoot.attention.overwrite import move, replace, tally
from kvfoot.attention.padded import paged, planned
from kvfoot.attention.pieces import join, piecewise
from kvfoot.attention.rings import push, refill
from kvfoot.attention.state import Ragged, State

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
name = "naive"


def logits(q_RHnD: Tensor, k_RmD: Tensor, scale: float, causal: bool, visible: Tensor | None = None) -> Tensor:
    """fp32 [R, H, n, m]; -inf where a query does not see an entry."""
    s_RHnm = torch.einsum("rhnd,rmd->rhnm", q_RHnD.float(), k_RmD.float()) * scale
    n, m = s_RHnm.shape[-2:]
    if visible is not None:
        s_RHnm = s_RHnm.masked_fill(~visible[:, None], -torch.inf)
    elif causal:
        seen = torch.ones(n, m, dtype=torch.bool, device=s_RHnm.device).tril(m - n)
        s_RHnm = s_RHnm.masked_fill(~seen, -torch.inf)
    return s_RHnm


def attend(
    q_RHnD: Tensor, k_RmD: Tensor, v_RmD: Tensor, scale: float, causal: bool, visible: Tensor | None = None
) -> State:
    """Softmax attention: out fp32 [R, H, n, D], lse fp32 [R, H, n]."""
    s_RHnm = logits(q_RHnD, k_RmD, scale, causal, visible)
    lse_RHn = s_RHnm.logsumexp(-1)
    p_RHnm = (s_RHnm - lse_RHn[..., None]).exp()
    return State(torch.einsum("rhnm,rmd->rhnd", p_RHnm, v_RmD.float()), lse_RHn)


def decode(q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor, rows: Ragged, scale: float) -> State:
    """One query per row and head over rows of any lengths: out fp32 [R, H, D], lse fp32 [R, H].

    k_pages, v_pages: [pages, page_size, D], the arena.
    """
    out, lse = torch.empty_like(q_RHD, dtype=torch.float32), torch.empty_like(q_RHD[..., 0], dtype=torch.float32)
    for r, m in enumerate(rows.lens.tolist()):
        k_1mD, v_1mD = (x[rows.pages[r]].flatten(0, 1)[None, :m] for x in (k_pages, v_pages))
        state = attend(q_RHD[r][None, :, None], k_1mD, v_1mD, scale, causal=False)
        out[r], lse[r] = state.out[0, :, 0], state.lse[0, :, 0]
    return State(out, lse)


def gathered(q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor, slots_Rm: Tensor, scale: float) -> State:
    """One query per row and head over m entries of its choice: slots int64, counted through the whole arena."""
    k_RmD, v_RmD = (x.flatten(0, 1)[slots_Rm] for x in (k_pages, v_pages))
    state = attend(q_RHD[:, :, None], k_RmD, v_RmD, scale, causal=False)
    return State(state.out[:, :, 0], state.lse[:, :, 0])


def window_scores(q_RHwD: Tensor, k_RmD: Tensor, scale: float) -> Tensor:
    """Attention mass that the last w queries put on each of m entries, softmax over those m: fp32 [R, H, m]."""
    return logits(q_RHwD, k_RmD, scale, causal=True).softmax(-1).sum(-2)


def column_scores(q_RHnD: Tensor, k_RmD: Tensor, lse_RHn: Tensor, scale: float) -> Tensor:
    """The same for n queries whose normalisers are known: fp32 [R, H, m]."""
    return (logits(q_RHnD, k_RmD, scale, causal=True) - lse_RHn[..., None]).exp().sum(-2)
