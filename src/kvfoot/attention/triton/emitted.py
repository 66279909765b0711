"""Whole rows with their logits, which stay as the kernel left them until somebody asks (attention/emitted.py)."""

import torch
from torch import Tensor

from kvfoot.attention import emitted as plain
from kvfoot.attention.state import State
from kvfoot.attention.triton import common, decode, select
from kvfoot.attention.triton.plan import Plan
from kvfoot.attention.triton.scan import scan
from kvfoot.attention.triton.vote import vote


class Emitted(plain.Emitted):
    """Base-2 logits; their lse is a natural logarithm."""

    def logits(self) -> Tensor:
        return super().logits() * common.LN2

    def best(self, count: int, kernel: int, group: str, sink: int, leaving: int | None) -> Tensor | None:
        """None where an average is asked for, or everything in order: sorting is torch's."""
        if group != "max" or leaving is None or kernel > select.WIDEST:
            return None
        return select.best(self._logits, self._lse, self._lens, count, kernel, sink, leaving)

    def vote(self, sequences: int, first: int, last: int, count: int) -> Tensor | None:
        return vote(self._logits, self._lse, self._lens, sequences, first, last, count)


def emitted(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    plan: Plan | None,
    values: bool,
) -> tuple[State, Emitted]:
    """See attention/emitted.py; without values `out` has no meaning."""
    width = table_RP.shape[1] * k_pages.shape[1]
    if not values:
        score, lse = scan(q_RHD, k_pages, table_RP, lens_R, scale, width, plan)
        return State(q_RHD, lse), Emitted(score, lse, lens_R)
    score = common.scratch((*q_RHD.shape[:2], width), torch.float32, q_RHD.device)
    state = decode._run(q_RHD, k_pages, v_pages, table_RP, lens_R, scale, plan, None, score, None)
    return state, Emitted(score, state.lse, lens_R)
