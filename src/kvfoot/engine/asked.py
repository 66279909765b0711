"""What a reader is shown of a row inside a replayed step: numbers on the device, shapes by the page tables."""

from typing import Any

import torch
from torch import Tensor

from kvfoot.core.reading import Held


class Asked:
    """A `core.reading.Query` whose row lengths are on the device: `n` and `step` are those of the recording."""

    def __init__(
        self,
        layer: int,
        step: int,
        n: int,
        size: int,
        q: Tensor,
        key: Tensor,
        value: Tensor,
        newest: Tensor,
        table: Tensor,
        scale: float,
        k_pages: Tensor,
    ):
        """newest: int64 [R, 1]; table: page numbers, int32 [R, P]; k_pages: the arena's keys."""
        self.layer, self.step, self.n, self.size, self.q, self.key = layer, step, n, size, q, key
        self.value, self.newest, self.past = value, newest, 0
        self.below: Any = None
        self.weights: Tensor | None = None
        self._table, self._scale, self._pages = table, scale, k_pages

    @property
    def _entry(self) -> Tensor:
        return torch.arange(self._table.shape[1] * self._pages.shape[1], device=self.q.device)

    def scores(self) -> Tensor:
        assert self.weights is not None, "a reader that asks for scores does so in `refresh`"
        return self.weights

    def earlier(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        there = self._entry < self.newest
        return scores.masked_fill(~there[:, None], 0), there

    def contested(self, first: int, last: int) -> tuple[Tensor, int, Tensor | None]:
        there = (self._entry >= first) & (self._entry <= self.newest - last)
        p = self.scores().masked_fill(~there[:, None], 0)
        return p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny), 0, there

    def logits(self) -> Tensor:
        keys = self._pages[self._table.long()].flatten(1, 2).float()
        absent = (self._entry > self.newest)[..., None]
        s = torch.bmm(self.q.float() * self._scale, keys.masked_fill(absent, 0).mT)
        return s.masked_fill(absent.mT, -torch.inf)

    def hold(self, slots: Tensor) -> Held | None:
        return None

    def unrotated(self) -> Tensor:
        raise TypeError("a replayed step has no queries before RoPE: `phase` has to say None")

    def keys(self, last: int | None = None) -> Tensor:
        raise TypeError("a replayed step has no keys of all entries: `phase` has to say None")
