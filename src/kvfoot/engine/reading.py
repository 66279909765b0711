"""Decode steps of readers: the new entry is stored, the method chooses, the chosen entries are attended."""

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.state import Ragged, State
from kvfoot.cache.kv import KVCache
from kvfoot.cache.trace import Pass
from kvfoot.core.hooks import POSITION
from kvfoot.core.reading import Reader
from kvfoot.engine.span import Heads, Span


class Asked:
    """A `core.reading.Query` over rows of the cache."""

    def __init__(self, cache: KVCache, backend: Backend, span: Span, part: Heads, heads: tuple[int, ...], at: int):
        """at: place of the token in the pass."""
        self.cache, self.backend, self.rows, self.heads = cache, backend, span.sequence.rows, heads
        self.layer, self.scale = part.layer, part.scale
        self.n = int(self.rows.lens[self.layer, heads[0]])
        self.q, self.key = part.q[list(heads), :, at], part.k[list(heads), at]
        reading = span.sequence.reading
        self.below = next((reading[i, heads] for i in range(self.layer - 1, -1, -1) if (i, heads) in reading), None)
        self.step = 0 if span.begins else span.sequence.steps
        self.size = span.sequence.plan.reads or self.n
        self.scanned = 0.0
        self.newest = torch.full((len(self.q), 1), self.n - 1, device=self.q.device)
        self._logits: Tensor | None = None

    def logits(self) -> Tensor:
        if self._logits is None:
            self._logits = torch.bmm(self.q.float() * self.scale, self.keys().float().mT)
        return self._logits

    def scores(self) -> Tensor:
        return self.logits().softmax(-1)

    def earlier(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        return scores[..., :-1], None

    def contested(self, first: int, last: int) -> tuple[Tensor, int, Tensor | None]:
        return self.logits()[..., first : self.n - last].softmax(-1), first, None

    def keys(self) -> Tensor:
        self.scanned += self.n
        return self.cache.history(self.rows, self.layer, self.heads)[0]


def groups(cache: KVCache, span: Span, layer: int) -> list[tuple[int, ...]]:
    """KV heads that a reader reads, by length: those of whose rows nothing is taken while decoding."""
    later, rows = span.sequence.later, span.sequence.rows
    blocks = cache.blocks(rows, layer, later)
    return [heads for heads, _ in blocks if later is None or later.spares(layer)[heads[0]]]


def begin(cache: KVCache, backend: Backend, span: Span, part: Heads) -> None:
    """The prompt has ended: every group of rows gets its state from the last token."""
    sequence, p = span.sequence, span.sequence.trace.passes[-1]
    assert isinstance(sequence.method, Reader)
    for heads in groups(cache, span, part.layer):
        query = Asked(cache, backend, span, part, heads, span.stop - 1)
        sequence.reading[part.layer, heads] = sequence.method.start(query)
        _charge(p, part.layer, heads, query.scanned)


def read(cache: KVCache, backend: Backend, span: Span, part: Heads) -> None:
    """One decode step of one layer."""
    sequence, layer, rows = span.sequence, part.layer, span.sequence.rows
    method, p, at = sequence.method, sequence.trace.passes[-1], span.start
    assert isinstance(method, Reader)
    assert p.loaded is not None
    assert p.refreshed is not None
    k, v = part.k[:, span.packed], part.v[:, span.packed]
    position = k.new_full((len(k), 1, 1), rows.seen, dtype=torch.int32)
    values = {POSITION.name: position} if sequence.plan.planes else {}
    parts = groups(cache, span, layer)
    if sequence.later is None:
        cache.extend(rows, layer, k, v, values)
    for heads in parts:
        own = list(heads)
        if sequence.later is not None:
            cache.append(rows, layer, heads, k[own], v[own], {name: x[own] for name, x in values.items()})
        query = Asked(cache, backend, span, part, heads, at)
        state, chosen = method.read(sequence.reading[layer, heads], query)
        slots = chosen.slots
        if bool(chosen.refresh):  # the one wait for the device, where a reader decides there (decision D8)
            state, slots = method.refresh(state, query)
            slots = None if chosen.full else slots
            p.refreshed[layer, own] = True
        sequence.reading[layer, heads] = state
        found = _attend(cache, backend, query, slots)
        part.write(State(found.out[:, :, None], found.lse[..., None]), span.packed, own)
        p.loaded[layer, own] = query.n if slots is None else slots.shape[1]
        _charge(p, layer, heads, query.scanned + 2 * chosen.extra)


def _attend(cache: KVCache, backend: Backend, query: Asked, slots: Tensor | None) -> State:
    """slots: int64 [R, c] in the rows, None for everything."""
    table = cache.table(query.rows, query.layer)[list(query.heads)]
    pool = cache.pool
    if slots is None:
        lens = query.rows.lens[query.layer, list(query.heads)]
        return backend.decode(query.q, pool.k, pool.v, Ragged(table, lens), query.scale)
    size = pool.page_size
    flat = table.gather(1, slots // size) * size + slots % size
    return backend.gathered(query.q, pool.k, pool.v, flat, query.scale)


def _charge(p: Pass, layer: int, heads: tuple[int, ...], pairs: float) -> None:
    assert p.scan is not None
    p.scan[layer, list(heads)] += pairs
