"""A long chunk of a prompt in one layer, in pieces: its own square once for all heads, then each row's history.

Nothing is gathered but the block that is read; heads of different lengths share the square, so that neither queries nor
the chunk's keys are copied to split them.
"""

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.pieces import history
from kvfoot.attention.state import State
from kvfoot.cache.kv import KVCache
from kvfoot.engine.span import Heads, Span


class Chunk:
    """Use `of`."""

    def __init__(self, cache: KVCache, backend: Backend, part: Heads, span: Span):
        self.cache, self.backend, self.part, self.span = cache, backend, part, span
        self.q = part.q[:, :, span.packed]
        self.own = backend.attend(self.q, part.k[:, span.packed], part.v[:, span.packed], part.scale, True)

    @classmethod
    def of(cls, cache: KVCache, backend: Backend, part: Heads, span: Span) -> "Chunk | None":
        """None where the layer's rows are better attended to as a whole, or have to be."""
        n, pool = span.n + span.patch, cache.pool
        plain = not span.renumbered and span.sequence.plan.band is None and pool.storage.plain
        if not plain or n % pool.page_size or not backend.piecewise(part.q[:, :, span.packed], part.k[:, span.packed]):
            return None
        return cls(cache, backend, part, span)

    def attend(self, heads: tuple[int, ...], b: int) -> Tensor:
        """Attention of rows with b stored entries, written to the layer's output; returns its lse [R, H, n].

        Some of a layer's heads go one by one: whatever their number, their shapes are the same.
        """
        every = len(heads) == len(self.part.k)
        return torch.cat([self._attend(some, b) for some in ([heads] if every else [(h,) for h in heads])])

    def _attend(self, heads: tuple[int, ...], b: int) -> Tensor:
        part, rows = self.part, self.part.rows(heads)
        q, own = self.q[rows], State(self.own.out[rows], self.own.lse[rows])

        def fetch(start: int, stop: int) -> tuple[Tensor, Tensor]:
            return self.cache.block(self.span.sequence.rows, part.layer, heads, start, stop)

        old = history(self.backend, q, b, part.scale, fetch)
        state = own if old is None else self.backend.join(old, own, q.dtype)
        return part.write(state, self.span.packed, rows).lse
