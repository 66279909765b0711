"""Whole rows attended to, and their logits: what a refresh chooses by. Shapes are the tables' (padded.py)."""

from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.padded import paged
from kvfoot.attention.state import State


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
