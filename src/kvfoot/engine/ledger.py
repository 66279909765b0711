"""Lengths, pages and slots of a batch's rows while its decode steps are replayed: arithmetic of the host alone (D8).

A row that grows takes its new entry at its end. A row that *stays* (it is full, so that one entry goes for the new one)
takes it one past its end while it is attended to: in the slack of its last page, or in a spare page where it has none.
Which entry goes, the host knows where it is the oldest (oldest.py); else the device says and the host never learns. The
lengths are the same whichever it is.
"""

from collections.abc import Sequence as Many

import numpy as np

from kvfoot.cache.kv import KVCache
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Plan
from kvfoot.engine.buffers import Buffers
from kvfoot.engine.look import begin_pass
from kvfoot.engine.oldest import Oldest
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.span import Span

WHOLE = int(np.iinfo(np.int32).max)


def limits(sequence: Sequence) -> np.ndarray:
    """Entries at which a row stays as long as it is, int64 [layers, kv_heads]; WHOLE where it only grows."""
    geometry = sequence.trace.geometry
    found = np.full((geometry.layers, geometry.kv_heads), WHOLE, np.int64)
    if sequence.later is not None:
        found[:] = sequence.later.counts
    for layer in range(geometry.layers):
        window = geometry.window(layer)
        if window is not None:
            found[layer] = window - 1
    return found


def spare_pages(plan: Plan, geometry: Geometry, size: int) -> int:
    """Pages that replayed steps of a bucket of `size` sequences take beside the rows' own."""
    return 1 + (size * geometry.kv_heads if plan.later is not None or any(geometry.windows) else 0)


class Ledger:
    """B places for sequences, some of them empty. The sequences' pages are in order again after `close`."""

    def __init__(self, cache: KVCache, buffers: Buffers, sequences: Many[Sequence]):
        """Raises PoolExhausted, before anything has changed."""
        g, pool = cache.geometry, cache.pool
        B, self.shape = buffers.size, (g.layers, buffers.size, g.kv_heads)
        self.cache, self.buffers, self.sequences = cache, buffers, list(sequences)
        plan = self.sequences[0].plan
        extra = spare_pages(plan, g, B)
        pool.require(extra + sum(cache.forecast(s.rows, 1, s.later) for s in self.sequences))
        self.spare = pool.allocate(extra)
        self.active = np.arange(B) < len(self.sequences)
        self.lens, self.tail = np.zeros(self.shape, np.int64), np.full(self.shape, -1, np.int64)
        self.limit = np.full(self.shape, WHOLE, np.int64)
        for b, sequence in enumerate(self.sequences):
            self.limit[:, b] = limits(sequence)
        self.oldest = Oldest(cache, self.sequences[0].method, self.limit)
        self.stays, self.fresh = np.zeros(self.shape, bool), np.zeros(self.shape, bool)
        self.lost = np.zeros((g.layers, B), bool)
        self.windowed = np.array([g.window(layer) is not None for layer in range(g.layers)])[:, None]
        self.pages = np.zeros(buffers.size_of_tables, np.int32)
        self.tables = buffers.split(self.pages)
        for b, sequence in enumerate(self.sequences):
            self._enter(b, sequence)
        buffers.fill(self.pages)
        buffers.host["idle"][:] = self.spare[0] * pool.page_size
        buffers.host["counts"][:] = self.limit.reshape(buffers.host["counts"].shape)

    def _enter(self, b: int, sequence: Sequence) -> None:
        rows, size, G = sequence.rows, self.cache.pool.page_size, self.shape[2]
        self.cache.claim(rows, sequence.later)
        self.lens[:, b] = rows.lens
        self.oldest.enter(b, sequence, self.limit[:, b] < WHOLE)
        for layer, pages in enumerate(rows.pages):
            for head, ids in enumerate(pages):
                self.tables[layer][b * G + head, : len(ids)] = ids
                if rows.lens[layer, head] % size:
                    self.tail[layer, b, head] = ids[-1]
        self.buffers.host["stream"][b] = sequence.generator.key

    def retire(self, b: int) -> None:
        """The sequence at place b is done: its rows do nothing from now on."""
        self.active[b] = False

    def idle(self) -> None:
        """Words under which a step changes nothing but the idle slot and the tokens."""
        host = self.buffers.host
        for name in ("position", "lens", "due"):
            host[name][:] = 0
        host["slots"][:] = host["goal"][:] = host["idle"][0]
        self.buffers.send()

    def prepare(self) -> None:
        """Pages and words for the next step. Raises PoolExhausted, before anything has changed."""
        pool, host, size = self.cache.pool, self.buffers.host, self.cache.pool.page_size
        active = self.active[None, :, None]
        stays = active & (self.lens >= self.limit)
        fresh = active & (self.tail < 0)
        grows = fresh & ~stays
        pages = pool.allocate(int(grows.sum()))
        self.stays, self.fresh = stays, grows
        if fresh.any():
            self.tail[grows] = pages
            layer, b, head = np.nonzero(fresh & stays)
            row = b * self.shape[2] + head
            self.tail[layer, b, head] = self.spare[1 + row]
            layer, b, head = np.nonzero(fresh)
            index = self.buffers.index(layer, b * self.shape[2] + head, self.lens[fresh] // size)
            self.pages[index] = page = self.tail[fresh]
            self.buffers.put(index, page)
        slots = np.where(active, self.tail * size + self.lens % size, host["idle"][0])
        flat, known = host["slots"].shape, self.oldest.layers[:, None, None]
        host["slots"][:] = slots.reshape(flat)
        gone = self.oldest.slots()
        due = stays & known & (gone >= 0)
        if due.any():
            (layer, b, head), at = np.nonzero(due), gone[due]
            page = self.pages[self.buffers.index(layer, b * self.shape[2] + head, at // size)]
            slots[due] = page.astype(np.int64) * size + at % size
        host["goal"][:] = slots.reshape(flat)
        host["lens"][:] = np.where(active, self.lens + 1, 0).reshape(flat)
        host["due"][:] = (stays & ~known).reshape(flat)
        host["position"][: len(self.sequences)] = [s.rows.seen for s in self.sequences]
        host["position"][~self.active] = 0
        self.buffers.send()

    def settle(self) -> None:
        """The step is on its way: what it does to lengths, in numbers."""
        size = self.cache.pool.page_size
        for b in np.flatnonzero(self.active).tolist():
            begin_pass(Span(self.sequences[b], b, b + 1, self.sequences[b].later))
        grew = self.active[None, :, None] & ~self.stays
        self.lens += grew
        self.tail[grew & (self.lens % size == 0)] = -1
        self.fresh = np.zeros(self.shape, bool)
        self.oldest.advance(self.stays)
        self.lost |= self.stays.any(2) & ~self.windowed
        for b in np.flatnonzero(self.active).tolist():
            rows = self.sequences[b].rows
            rows.lens = self.lens[:, b].copy()
            rows.seen += 1

    def close(self) -> None:
        """Hand the rows back to the cache: their pages as they are now, the spare ones returned."""
        pool, size, G = self.cache.pool, self.cache.pool.page_size, self.shape[2]
        pool.release(self.tail[self.fresh])  # of a step that never ran
        counts = -(-self.lens // size)
        for b, sequence in enumerate(self.sequences):
            rows = sequence.rows
            for layer, pages in enumerate(rows.pages):
                for head in range(G):
                    count = int(counts[layer, b, head])
                    if len(pages[head]) != count:
                        pages[head] = self.tables[layer][b * G + head, :count].astype(np.int64)
                rows.indices[layer].clear()
                if self.windowed[layer]:
                    rows.turn[layer] = int(self.oldest.turn[layer, b, 0])
                rows.ordered[layer] = rows.ordered[layer] and not self.lost[layer, b]
        pool.release(self.spare)
        self.spare = self.spare[:0]
