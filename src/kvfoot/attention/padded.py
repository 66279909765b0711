"""Decode attention over ragged rows in plain torch whose shapes follow from the tables alone: no length is read here.

The definition of what a captured step calls. Every row is gathered to the width of its table and masked by its length
on the device, so it reads more than it needs; kernels take the same arguments and do not (triton/backend.py).
"""

from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.rings import push, refill
from kvfoot.attention.state import State

__all__ = ["Emitted", "emitted", "paged", "planned", "push", "refill"]


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
) -> tuple[State, Tensor | None]:
    """One query per row and head over the row's first lens_R entries: out fp32 [R, H, D], lse fp32 [R, H].

    read: int64 [R, K], of a row's entries the first lens_R of these, instead. plan is then not of use.
    table_RP: page numbers, whatever past a row's own; lens_R on the device. With `width`, at least every length: the
    softmax weights too, fp32 [R, H, width], 0 beyond a row's entries. An empty row has out = 0, lse = -inf.
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
        weights = p[..., :width] if width <= P * size else torch.nn.functional.pad(p, (0, width - P * size))
    return State(torch.bmm(p, v), lse), weights


class Emitted:
    """The logits of rows as attention met them; what is behind a row's end has no meaning."""

    def __init__(self, logits_RHm: Tensor, lse_RH: Tensor, lens_R: Tensor):
        self._logits, self._lse, self._lens = logits_RHm, lse_RH, lens_R

    def of(self, rows: slice | Tensor) -> "Emitted":
        """Some of the rows: neighbours, or int64 numbers."""
        every = (self._logits, self._lse, self._lens)
        return type(self)(*(x[rows] if isinstance(rows, slice) else x.index_select(0, rows) for x in every))

    def logits(self) -> Tensor:
        """fp32 [R, H, m], -inf behind a row's end."""
        m = self._logits.shape[-1]
        there = torch.arange(m, device=self._lens.device) < self._lens[:, None]
        return self._logits.masked_fill(~there[:, None], -torch.inf)

    def weights(self) -> Tensor:
        """Their softmax, 0 there."""
        return (self.logits() - self._lse.clamp(min=-1e30)[..., None]).exp()

    def best(self, count: int, kernel: int, group: str, sink: int, leaving: int | None) -> Tensor | None:
        """See core.reading.Query; so for `vote`."""
        return None

    def vote(self, sequences: int, first: int, last: int, count: int) -> Tensor | None:
        return None


def emitted(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    *,
    plan: Any = None,
    values: bool = True,
) -> tuple[State, Emitted]:
    """As `paged`, and the logits of whole rows. values: whether `out` is wanted; it has no meaning else."""
    state, _ = paged(q_RHD, k_pages, v_pages, table_RP, lens_R, scale)
    k_RmD = k_pages[table_RP.long()].flatten(1, 2).float()
    absent = torch.arange(k_RmD.shape[1], device=lens_R.device) >= lens_R[:, None]
    s_RHm = torch.bmm(q_RHD.float() * scale, k_RmD.masked_fill(absent[..., None], 0).mT)
    return state, Emitted(s_RHm, state.lse, lens_R)
