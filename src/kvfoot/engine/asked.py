"""What a reader is shown of rows inside a replayed step: numbers on the device, shapes by the page tables."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.pages import Pages
from kvfoot.attention.rings import Rings
from kvfoot.cache.pool import Pool
from kvfoot.core.reading import Held

Rows = slice | Tensor
"""Among a layer's R rows: neighbours, or int64 numbers."""


def take(x: Tensor, rows: Rows) -> Tensor:
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


class Step:
    """What a layer's rows have in a step, all of them: q [R, H, D], newest int64 [R, 1], 0 in idle rows."""

    def __init__(
        self,
        layer: int,
        q: Tensor,
        newest: Tensor,
        lens: Tensor,
        slots: Tensor,
        pool: Pool,
        backend: Backend,
        entries: int,
    ):
        """lens: int64 [R]. slots: int64 [R] of the arena, where the newest entries lie. entries: the most of a row."""
        self.layer, self.q, self.newest, self.lens, self.slots = layer, q, newest, lens, slots
        self.pool, self.backend, self.entries = pool, backend, entries


class Asked:
    """A `core.reading.Query` whose row lengths are on the device: `n` and `step` are those of the recording.

    Rows are taken out of the layer's when somebody looks at them: a step that only moves a queue on takes none.
    """

    def __init__(self, step: Step, rows: Rows, sequences: int, number: int, n: int, size: int, below: Any):
        """number: of the step; below: see Query."""
        self.layer, self.step, self.n, self.size, self.past = step.layer, number, n, size, 0
        self.sequences, self.below, self.pushed = sequences, below, False
        self._all, self._rows = step, rows
        self.emitted: Any = None
        self.bounded = 0
        """Entries of the pages whose bounds were read."""

    @cached_property
    def q(self) -> Tensor:
        return take(self._all.q, self._rows)

    @cached_property
    def key(self) -> Tensor:
        return self._stored(self._all.pool.k)

    @cached_property
    def value(self) -> Tensor:
        return self._stored(self._all.pool.v)

    @cached_property
    def newest(self) -> Tensor:
        return take(self._all.newest, self._rows)

    @cached_property
    def _lens(self) -> Tensor:
        return take(self._all.lens, self._rows)

    def _stored(self, plane: Tensor) -> Tensor:
        return plane.view(-1, plane.shape[2]).index_select(0, take(self._all.slots, self._rows))

    @property
    def _entry(self) -> Tensor:
        return torch.arange(self._all.entries, device=self.q.device)

    def logits(self) -> Tensor:
        return self._emitted().logits()

    def scores(self) -> Tensor:
        return self._emitted().weights()

    def best(self, count: int, kernel: int, group: str, sink: int, leaving: int | None) -> Tensor | None:
        return self._emitted().best(count, kernel, group, sink, leaving)

    def vote(self, first: int, last: int, count: int) -> Tensor | None:
        return self._emitted().vote(self.sequences, first, last, count)

    def _emitted(self) -> Any:
        if self.emitted is None:
            raise TypeError("in a replayed step a reader asks for logits and scores in `refresh`, or `phase` says None")
        return self.emitted

    def push(self, queue: Any) -> tuple[Any, Any]:
        """The ring has moved on already, for all layers at once."""
        if not isinstance(queue, Rings):
            raise TypeError("a replayed step pushes a queue that `Reader.queue` names")
        self.pushed = True
        return queue, queue

    def widen(self, low: Tensor, high: Tensor, page: int) -> tuple[Tensor, Tensor]:
        slots = take(self._all.slots, self._rows)
        self._all.backend.widen(low, high, self._all.pool.k, slots, self._lens, page)
        return low, high

    def reach(self, low: Tensor, high: Tensor, page: int, group: str) -> Tensor:
        self.bounded = page
        return self._all.backend.reach(self.q, low, high, self._lens, page, group == "mean")

    def pages(self, numbers: Tensor, page: int) -> Pages:
        return Pages(torch.cat([numbers, self.newest // page], 1), page)

    def earlier(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        there = self._entry < self.newest
        return scores.masked_fill(~there[:, None], 0), there

    def contested(self, first: int, last: int) -> tuple[Tensor, int, Tensor | None]:
        there = (self._entry >= first) & (self._entry <= self.newest - last)
        p = self.scores().masked_fill(~there[:, None], 0)
        return p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny), 0, there

    def hold(self, slots: Tensor) -> Held | None:
        return None

    def unrotated(self) -> Tensor:
        raise TypeError("a replayed step has no queries before RoPE: `phase` has to say None")

    def keys(self, last: int | None = None) -> Tensor:
        raise TypeError("a replayed step has no keys of all entries: `phase` has to say None")
