"""Decode attention over ragged rows in plain torch whose shapes follow from the tables alone: no length is read here.

The definition of what a captured step calls. Every row is gathered to the width of its table and masked by its length
on the device, so it reads more than it needs; kernels take the same arguments and do not (triton/backend.py).
"""

from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.state import State

LOG2E = 1.4426950408889634


def planned(lens_LR: Tensor, head_dim: int, dtype: torch.dtype) -> Any:
    """What `paged` wants prepared for all layers of a step at once: nothing."""
    return None


def paged(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    *,
    plan: Any = None,
    width: int = 0,
    read: Tensor | None = None,
    logits: bool = False,
) -> tuple[State, Tensor | None]:
    """One query per row and head over the row's first lens_R entries: out fp32 [R, H, D], lse fp32 [R, H].

    read: int64 [R, K], of a row's entries the first lens_R of these, instead. plan is then not of use.
    table_RP: page numbers, whatever past a row's own; lens_R on the device. With `width`, at least every length: the
    softmax weights too, fp32 [R, H, width], 0 beyond a row's entries; or, with `logits`, the logits in base 2 (times
    log2 e), anything beyond. An empty row has out = 0, lse = -inf.
    """
    if read is not None:
        size = k_pages.shape[1]
        table_RP = table_RP.long().gather(1, read // size) * size + read % size
        k_pages, v_pages = (x.view(-1, 1, x.shape[2]) for x in (k_pages, v_pages))
    R, P = table_RP.shape
    size = k_pages.shape[1]
    index = table_RP.reshape(-1).long()
    absent = torch.arange(P * size, device=lens_R.device) >= lens_R[:, None]
    # What lies past a row's end may be NaN.
    k, v = (
        x.index_select(0, index).view(R, P * size, -1).float().masked_fill(absent[..., None], 0)
        for x in (k_pages, v_pages)
    )
    s_RHm = torch.bmm(q_RHD.float() * scale, k.mT).masked_fill(absent[:, None], -torch.inf)
    lse = s_RHm.logsumexp(-1)
    p = (s_RHm - lse.clamp(min=-1e30)[..., None]).exp()
    weights = None
    if width:
        weights = s_RHm * LOG2E if logits else p
        weights = weights[..., :width] if width <= P * size else torch.nn.functional.pad(weights, (0, width - P * size))
    return State(torch.bmm(p, v), lse), weights
