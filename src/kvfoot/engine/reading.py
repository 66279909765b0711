"""Decode steps of readers: the new entry is stored, the method chooses, the chosen entries are attended."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.state import Ragged, State
from kvfoot.cache.kv import KVCache
from kvfoot.cache.trace import Pass
from kvfoot.core.hooks import POSITION
from kvfoot.core.reading import Held, Reader
from kvfoot.engine.correct import correct
from kvfoot.engine.span import Heads, Span
from kvfoot.models.rotation import Rotation


class Asked:
    """A `core.reading.Query` over rows of the cache."""

    def __init__(
        self,
        cache: KVCache,
        backend: Backend,
        span: Span,
        part: Heads,
        heads: tuple[int, ...],
        at: int,
        rotation: Rotation | None,
    ):
        """at: place of the token in the pass."""
        self.cache, self.backend, self.rows, self.heads = cache, backend, span.sequence.rows, heads
        self.layer, self.scale, self.rotation = part.layer, part.scale, rotation
        self.n = int(self.rows.lens[self.layer, heads[0]])
        own = list(heads)
        self.q, self.key, self.value = part.q[own, :, at], part.k[own, at], part.v[own, at]
        reading = span.sequence.reading
        self.below = next((reading[i, heads] for i in range(self.layer - 1, -1, -1) if (i, heads) in reading), None)
        self.step = 0 if span.begins else span.sequence.steps
        self.size, self.past, self.sequences = span.sequence.plan.reads or self.n, span.past, 1
        self.position = self.rows.seen + at - span.start
        self.scanned = 0.0
        self.newest = torch.full((len(self.q), 1), self.n - 1, device=self.q.device)
        self.copied: tuple[Tensor, Held] | None = None
        self._logits: Tensor | None = None

    def unrotated(self) -> Tensor:
        assert self.rotation is not None
        return self.rotation.back(self.layer, self.q.float()[:, :, None], [self.position])[:, :, 0]

    def logits(self) -> Tensor:
        if self._logits is None:
            self._logits = torch.bmm(self.q.float() * self.scale, self.keys().float().mT)
        return self._logits

    def scores(self) -> Tensor:
        return self.logits().softmax(-1)

    def keys(self, last: int | None = None) -> Tensor:
        count = self.n if last is None else min(last, self.n)
        self.scanned += count
        if count == self.n:
            return self.cache.keys(self.rows, self.layer, self.heads)
        slots = torch.arange(self.n - count, self.n, device=self.q.device).expand(len(self.heads), count)
        return self.cache.take_keys(self.rows, self.layer, self.heads, slots)

    def best(self, count: int, kernel: int, group: str, sink: int, leaving: int | None) -> Tensor | None:
        return None

    def vote(self, first: int, last: int, count: int) -> Tensor | None:
        return None

    def push(self, queue: Tensor) -> tuple[Tensor, Tensor]:
        read = torch.cat([queue, self.newest], 1)
        return read, read[:, -max(self.size, queue.shape[1]) :]

    def widen(self, low: Tensor, high: Tensor, page: int) -> tuple[Tensor, Tensor]:
        key = self.key[:, None]
        if (self.n - 1) % page == 0:
            return torch.cat([low, key], 1), torch.cat([high, key], 1)
        last = torch.minimum(low[:, -1:], key), torch.maximum(high[:, -1:], key)
        return torch.cat([low[:, :-1], last[0]], 1), torch.cat([high[:, :-1], last[1]], 1)

    def reach(self, low: Tensor, high: Tensor, page: int, group: str) -> Tensor:
        self.scanned += 2 * low.shape[1]
        return self.backend.reach(self.q, low, high, self.newest[:, 0] + 1, page, group == "mean")

    def pages(self, numbers: Tensor, page: int) -> Tensor:
        inside = torch.arange(page, device=numbers.device)
        last = torch.arange((self.n - 1) // page * page, self.n, device=numbers.device).expand(len(numbers), -1)
        slots = numbers.sort(1).values[..., None] * page + inside
        return torch.cat([slots.flatten(1), last], 1)

    def hold(self, slots: Tensor) -> Held | None:
        if self.cache.pool.storage.plain:
            return None
        self.scanned += 2 * slots.shape[1]
        held = Held(*self.cache.take(self.rows, self.layer, self.heads, slots))
        self.copied = slots, held
        return held

    def earlier(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        return scores[..., :-1], None

    def contested(self, first: int, last: int) -> tuple[Tensor, int, Tensor | None]:
        return self.logits()[..., first : self.n - last].softmax(-1), first, None


def groups(cache: KVCache, span: Span, layer: int) -> list[tuple[int, ...]]:
    """KV heads that a reader reads, by length: those of whose rows nothing is taken while decoding."""
    later, rows = span.sequence.later, span.sequence.rows
    blocks = cache.blocks(rows, layer, later)
    return [heads for heads, _ in blocks if later is None or later.spares(layer)[heads[0]]]


def begin(cache: KVCache, backend: Backend, span: Span, part: Heads, rotation: Rotation | None) -> None:
    """The prompt has ended: every group of rows gets its state from the last token."""
    sequence, p = span.sequence, span.sequence.trace.passes[-1]
    assert isinstance(sequence.method, Reader)
    for heads in groups(cache, span, part.layer):
        query = Asked(cache, backend, span, part, heads, span.stop - 1, rotation)
        sequence.reading[part.layer, heads] = sequence.method.start(query)
        sequence.past.pop((part.layer, heads), None)
        _charge(p, part.layer, heads, query.scanned)


def read(cache: KVCache, backend: Backend, span: Span, part: Heads, rotation: Rotation | None) -> None:
    """One decode step of one layer."""
    sequence, layer, rows = span.sequence, part.layer, span.sequence.rows
    method, p, at = sequence.method, sequence.trace.passes[-1], span.start
    assert isinstance(method, Reader)
    assert p.loaded is not None
    assert p.refreshed is not None
    if span.past:
        again = slice(at - span.past, at)
        for heads in groups(cache, span, layer):
            cache.rewrite(rows, layer, heads, part.k[list(heads), again], part.v[list(heads), again])
    k, v = part.k[:, at : at + 1], part.v[:, at : at + 1]
    position = k.new_full((len(k), 1, 1), rows.seen, dtype=torch.int32)
    values = {POSITION.name: position} if sequence.plan.planes else {}
    parts = groups(cache, span, layer)
    if sequence.later is None:
        cache.extend(rows, layer, k, v, values)
    for heads in parts:
        own = list(heads)
        if sequence.later is not None:
            cache.append(rows, layer, heads, k[own], v[own], {name: x[own] for name, x in values.items()})
        query = Asked(cache, backend, span, part, heads, at, rotation)
        before = sequence.reading[layer, heads]
        state, chosen = method.read(before, query)
        slots, held = chosen.slots, chosen.held
        if bool(chosen.refresh):  # the one wait for the device, where a reader decides there (decision D8)
            state, slots = method.refresh(state, query)
            slots = None if chosen.full else slots
            held = query.copied[1] if query.copied and query.copied[0] is slots else None
            p.refreshed[layer, own] = True
        sequence.reading[layer, heads] = state
        found = _attend(cache, backend, query, slots, held)
        part.write(State(found.out[:, :, None], found.lse[..., None]), slice(at, at + 1), own)
        p.loaded[layer, own] = query.n if slots is None else slots.shape[1]
        if method.tokens > 1:
            unseen = None if slots is None or not span.past else method.unseen(before, query, slots)
            correct(cache, backend, span, part, heads, found, slots, unseen)
        _charge(p, layer, heads, query.scanned + 2 * chosen.extra)


def _attend(cache: KVCache, backend: Backend, query: Asked, slots: Tensor | None, held: Held | None) -> State:
    """slots: int64 [R, c] in the rows, None for everything; held: copies of just these."""
    pool, (rows, layer, heads) = cache.pool, (query.rows, query.layer, query.heads)
    if pool.storage.plain and slots is not None:
        flat = cache.flat_slots(rows, layer, heads, slots)
        return backend.gathered(query.q, pool.k, pool.v, flat, query.scale)
    if pool.storage.plain:
        table = cache.table(rows, layer)[list(heads)]
        return backend.decode(query.q, pool.k, pool.v, Ragged(table, rows.lens[layer, list(heads)]), query.scale)
    if held is not None:
        k, v = held.k, held.v
    elif slots is not None:
        k, v = cache.take(rows, layer, heads, slots)
    else:
        k, v = cache.history(rows, layer, heads)
    state = backend.attend(query.q[:, :, None], k, v, query.scale, causal=False)
    return State(state.out[:, :, 0], state.lse[:, :, 0])


def _charge(p: Pass, layer: int, heads: tuple[int, ...], pairs: float) -> None:
    assert p.scan is not None
    p.scan[layer, list(heads)] += pairs


def state_bytes(states: Iterable[Any]) -> int:
    """Bytes of the tensors that states of readers are made of: memory that several share counts once."""
    pieces: dict[int, int] = {}
    todo = list(states)
    while todo:
        x = todo.pop()
        if isinstance(x, Tensor):
            storage = x.untyped_storage()
            pieces[storage.data_ptr()] = min(storage.nbytes(), x.numel() * x.element_size())
        elif is_dataclass(x):
            todo += [getattr(x, f.name) for f in fields(x)]
        elif isinstance(x, (tuple, list)):
            todo += x
    return sum(pieces.values())
