"""A long chunk of a prompt in one layer, in pieces: its own square once for all heads, then each row's history.

Nothing is gathered but the block that is read; heads of different lengths share the square, so that neither queries nor
the chunk's keys are copied to split them.
"""

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.pieces import WIDE, history
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
        each = [heads] if len(heads) == len(self.part.k) else [(h,) for h in heads]
        found = torch.cat([self._attend(some, b) for some in each])
        if self.part.layer == self.cache.geometry.layers - 1:
            self._ahead(each[0], b)
        return found

    def _attend(self, heads: tuple[int, ...], b: int) -> Tensor:
        part, rows = self.part, self.part.rows(heads)
        q, own = self.q[rows], State(self.own.out[rows], self.own.lse[rows])

        def fetch(start: int, stop: int) -> tuple[Tensor, Tensor]:
            return self.cache.block(self.span.sequence.rows, part.layer, heads, start, stop)

        old = history(self.backend, q, b, part.scale, fetch)
        state = own if old is None else self.backend.join(old, own, q.dtype)
        return part.write(state, self.span.packed, rows).lse

    def _ahead(self, heads: tuple[int, ...], b: int) -> None:
        """Attend to a block of the length that the next chunk is the first to meet, of no content: its plan is made
        while the device is busy with this chunk. At the next one's start it would be idle."""
        sequence, n = self.span.sequence, self.q.shape[2]
        size = {0: n, (WIDE - 1) * n: WIDE * n}.get(b)
        if size is not None and sequence.prompt - sequence.rows.seen - self.span.n >= n:
            q = self.q[self.part.rows(heads)]
            k = q.new_empty(len(heads), size, q.shape[3])
            self.backend.attend(q, k, k, self.part.scale, causal=False)
