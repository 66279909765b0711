from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from kvfoot.core.hooks import require
from kvfoot.core.reading import Query, Read
from kvfoot.core.registry import register
from kvfoot.methods.read.quest import Bounds, Quest, page_bounds

NEVER = -1


@dataclass(frozen=True)
class Logged(Bounds):
    """Bounds, and log: int64 [R, P], the last step in which each page was read; the prompt's end is step 0."""

    log: Tensor


@register(
    "retroattention",
    paper="2508.09001",
    category="read",
    stores="every entry + bounds of pages",
    reads="Quest's pages, with which the last tokens' attention is corrected",
)
@dataclass(frozen=True)
class RetroAttention(Quest):
    """Quest, whose step is a pass over the newest token and the `tokens` - 1 before it (published as w = 2).

    A page that the newest token reads is also attended by those of them that have not read it yet, and the corrected
    token's entries in the layers above are written anew (engine/correct.py). Causality holds inside a page. Published
    budget: 0.15 of the prompt.
    """

    window: int = 2
    share: ClassVar[Fraction] = Fraction(3, 20)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.window >= 1, f"{self.name}: window={self.window}: the newest token and those that are corrected")
        require(
            not self.verify or self.window == 1,
            f"{self.name}: verify takes drafts back, but not what they corrected: use quest, or window=1",
        )

    @property
    def tokens(self) -> int:
        return self.window

    def start(self, query: Query) -> Logged | None:
        bounds = super().start(query)
        if bounds is None:
            return None
        log = torch.full(bounds.low.shape[:2], NEVER, device=bounds.low.device)
        return Logged(bounds.low, bounds.high, log)

    def read(self, state: Bounds | None, query: Query) -> tuple[Bounds | None, Read]:
        if state is None:
            return None, Read(None)
        assert isinstance(state, Logged)
        bounds, pages = self._renewed(state, query), -(-query.n // self.page)
        log = torch.cat([state.log, state.log.new_full((len(state.log), pages - state.log.shape[1]), NEVER)], 1)
        chosen = self._choose(bounds, query)
        if chosen.slots is None:
            log = torch.full_like(log, query.step)
        else:
            log = log.scatter(1, chosen.slots // self.page, query.step)
        return Logged(bounds.low, bounds.high, log), chosen

    def phase(self, step: int, n: int, size: int) -> str | None:
        return None

    def unseen(self, state: Bounds | None, query: Query, slots: Tensor) -> Tensor:
        """A past token of step s has read the pages whose last reading is step s or later, and sees none after it."""
        assert isinstance(state, Logged)
        back = torch.arange(query.past, 0, -1, device=slots.device)[:, None]  # the oldest is `past` steps back
        pages = slots // self.page
        known = pages < state.log.shape[1]
        last = state.log.gather(1, pages.where(known, 0)).where(known, NEVER)
        earlier = slots[:, None] <= query.n - 1 - back
        return earlier & (last[:, None] < query.step - back)

    def _renewed(self, state: Bounds, query: Query) -> Bounds:
        """The bounds with the pages of the newest and of the corrected tokens made again: their keys have changed."""
        if not query.past:
            return Bounds(*query.widen(state.low, state.high, self.page))
        first = (query.n - 1 - query.past) // self.page
        renewed = page_bounds(query.keys(query.n - first * self.page), self.page)
        return Bounds(
            torch.cat([state.low[:, :first], renewed.low], 1), torch.cat([state.high[:, :first], renewed.high], 1)
        )
