"""Readers in a replayed step: lists of entries and whole rows by the same kernel, chosen between by lengths (D8).

A row that refreshes reads its whole table and none of its list, any other row the other way round; both are one launch
each for all rows, and an empty row costs nothing. So a refresh that is decided on the device needs no host, and scores
are written by rows that refresh alone.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.state import State, merge
from kvfoot.cache.kv import KVCache
from kvfoot.core.reading import Read, Reader
from kvfoot.engine.buffers import Buffers
from kvfoot.engine.ledger import Ledger
from kvfoot.engine.sequence import Sequence

Place = tuple[int, int, tuple[int, ...]]
"""(place in the batch, layer, KV heads): whose state."""


@dataclass(frozen=True)
class Cost:
    """Entries that a step of a kind reads per row, known when it is recorded: `read` of them by the list, None for all.

    full: a row that refreshes reads all that is stored, else `renewed` entries. extra: see core.reading.Read.
    """

    read: int | None
    full: bool
    renewed: int
    extra: float


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
        lens: Tensor,
        table: Tensor,
        scale: float,
        k_pages: Tensor,
    ):
        """lens: [R]; table: page numbers, int32 [R, P]; k_pages: the arena's keys."""
        self.layer, self.step, self.n, self.size, self.q, self.key = layer, step, n, size, q, key
        self.newest = (lens[:, None] - 1).clamp(min=0)
        self.below: Any = None
        self.weights: Tensor | None = None
        self._entry = torch.arange(table.shape[1] * k_pages.shape[1], device=q.device)
        self._table, self._scale, self._pages = table, scale, k_pages

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

    def keys(self) -> Tensor:
        raise TypeError("a replayed step has no keys of all entries: `phase` has to say None")


class Lists:
    """The states of one method's readers at fixed addresses, and their attention.

    steps: of every kind of step, the number of the one that was recorded.
    """

    def __init__(self, buffers: Buffers, cache: KVCache, backend: Backend, method: Reader):
        self.buffers, self.cache, self.backend, self.method = buffers, cache, backend, method
        self.states: dict[Place, Any] = {}
        self.sequences: list[Sequence] = []
        self.steps: dict[str, int] = {}
        self.costs: dict[str, dict[Place, Cost]] = {}
        self._rows: dict[Place, Tensor] = {}
        self._now: dict[Place, Any] = {}

    def attach(self, sequences: Many[Sequence]) -> None:
        """Copy the sequences' states in: of the shapes that are here already (`fits`), or the first ones."""
        self.sequences = list(sequences)
        for place, state in _places(sequences).items():
            if place in self.states:
                if self.method.lasting:
                    _copy(self.states[place], state)
            else:
                self.states[place] = _mapped(state, lambda x: x.clone()) if self.method.lasting else None
                heads = [place[0] * self.cache.geometry.kv_heads + head for head in place[2]]
                self._rows[place] = torch.tensor(heads, device=self.buffers.device)

    def fits(self, sequences: Many[Sequence]) -> bool:
        """Whether what is recorded suits these: the same groups of heads, states of the same shapes."""
        mine = {place: _shapes(state) for place, state in self.states.items()}
        theirs = {place: _shapes(state) for place, state in _places(sequences).items()}
        theirs = theirs if self.method.lasting else {place: [] for place in theirs}
        sizes = [[s.plan.reads for s in some] for some in (self.sequences, sequences)]
        return not mine or (mine == theirs and sizes[0] == sizes[1])

    def detach(self, sequences: Many[Sequence]) -> None:
        """Give the sequences their states back."""
        for (b, layer, heads), state in self.states.items():
            if b < len(sequences) and self.method.lasting:
                sequences[b].reading[layer, heads] = _mapped(state, lambda x: x.clone())

    def saved(self) -> dict[Place, Any]:
        return {place: _mapped(state, lambda x: x.clone()) for place, state in self.states.items()}

    def restore(self, states: dict[Place, Any]) -> None:
        for place, state in states.items():
            _copy(self.states[place], state)

    def attend(self, layer: int, kind: str, q: Tensor, key: Tensor, scale: float) -> State:
        """q [R, H, D] and key [R, D] of the new tokens, stored already. The states move on by a step."""
        b, pool = self.buffers, self.cache.pool
        table, lens = b.tables[layer], b.words["lens"][layer]
        width, R = table.shape[1] * pool.page_size, len(lens)
        asked: dict[Place, tuple[Asked, Any, Read]] = {}
        fires, every = (torch.zeros(R, dtype=torch.bool, device=q.device) for _ in range(2))
        for place in (p for p in self.states if p[1] == layer):
            rows, size = self._rows[place], self.sequences[place[0]].plan.reads or 0
            n = max(int(self.sequences[place[0]].rows.lens[layer, place[2][0]]), size) + 1
            query = Asked(layer, self.steps[kind], n, size, q[rows], key[rows], lens[rows], table[rows], scale, pool.k)
            query.below = self._below(place)
            state, chosen = self.method.read(self.states[place], query)
            asked[place] = query, state, chosen
            if isinstance(chosen.refresh, Tensor):
                fires.index_copy_(0, rows, chosen.refresh.expand(len(rows)))
            elif chosen.refresh:
                fires.index_fill_(0, rows, True)
            if chosen.slots is None:
                every.index_fill_(0, rows, True)
        choices = [chosen for _, _, chosen in asked.values()]
        renews, full = any(c.refresh is not False for c in choices), any(c.full or c.slots is None for c in choices)
        whole, weights = None, None
        if renews or full:
            emitted = width if renews and not self.method.by_logits else 0
            whole, weights = self.backend.paged(
                q, pool.k, pool.v, table, lens.where(fires | every, 0), scale, width=emitted
            )
        most = max(0 if c.slots is None else c.slots.shape[1] for c in choices)
        listed = torch.zeros(R, most, dtype=torch.int64, device=q.device)
        counts = torch.zeros(R, dtype=torch.int64, device=q.device)
        for place, (query, went, chosen) in asked.items():
            state, rows, slots, renewed = went, self._rows[place], chosen.slots, 0
            count = torch.full((len(rows),), 0 if slots is None else slots.shape[1], device=q.device)
            if chosen.refresh is not False:
                fired = fires[rows]
                query.weights = None if weights is None else weights[rows]
                state, better = self.method.refresh(went, query)
                state, renewed = _where(fired, state, went), better.shape[1]
                if slots is not None and not chosen.full:
                    slots = torch.cat([better.where(fired[:, None], slots[:, :renewed]), slots[:, renewed:]], 1)
                count = count.where(~fired, 0 if chosen.full else renewed)
            if slots is not None:
                listed[:, : slots.shape[1]].index_copy_(0, rows, slots)
                counts.index_copy_(0, rows, count)
            self._keep(place, state)
            read = None if slots is None else slots.shape[1]
            self.costs.setdefault(kind, {})[place] = Cost(read, chosen.full, renewed, chosen.extra)
        here = lens > 0
        b.fired[layer].copy_(fires & here)
        if not most and whole is not None:
            return whole
        k, v = (x.view(-1, 1, x.shape[2]) for x in (pool.k, pool.v))
        size, listed = pool.page_size, listed.clamp(min=0)  # an idle row lists what it does not have
        at = table.long().gather(1, listed // size) * size + listed % size
        part, _ = self.backend.paged(q, k, v, at.int(), counts.where(here, 0), scale)
        return part if whole is None or not full else merge(whole, part)

    def _below(self, place: Place) -> Any:
        """This step's state of the same heads in the next lower layer that has one."""
        b, layer, heads = place
        return next((self._now[b, i, heads] for i in range(layer - 1, -1, -1) if (b, i, heads) in self._now), None)

    def _keep(self, place: Place, state: Any) -> None:
        self._now[place] = state
        if self.method.lasting:
            _copy(self.states[place], state)

    def account(self, ledger: Ledger, kind: str, fired: np.ndarray) -> None:
        """The step's reads into the sequences' traces. fired: bool [L, R]."""
        for (b, layer, heads), cost in self.costs[kind].items():
            if b >= len(ledger.sequences) or not ledger.active[b]:
                continue
            p = ledger.sequences[b].trace.passes[-1]
            assert p.loaded is not None and p.refreshed is not None and p.scan is not None  # noqa: PT018
            own = list(heads)
            n = int(p.before[layer, own[0]]) + 1
            refreshed = bool(fired[layer, b * ledger.shape[2] + own[0]])
            read = n if cost.read is None else cost.read
            p.loaded[layer, own] = (n if cost.full else cost.renewed) if refreshed else read
            p.refreshed[layer, own] = refreshed
            p.scan[layer, own] += (n if refreshed else 0) + 2 * cost.extra


def _places(sequences: Many[Sequence]) -> dict[Place, Any]:
    return {(b, *key): state for b, s in enumerate(sequences) for key, state in s.reading.items()}


def _mapped(state: Any, change: Any) -> Any:
    """The state with every tensor changed; a state is a tensor, a dataclass of tensors, or None."""
    if isinstance(state, Tensor):
        return change(state)
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{f.name: change(getattr(state, f.name)) for f in fields(state)})
    return state


def _tensors(state: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    _mapped(state, note)
    return found


def _shapes(state: Any) -> list[torch.Size]:
    return [x.shape for x in _tensors(state)]


def _copy(target: Any, source: Any) -> None:
    for to, new in zip(_tensors(target), _tensors(source), strict=True):
        to.copy_(new)


def _where(fired: Tensor, new: Any, old: Any) -> Any:
    """Row by row; what has no rows follows the first row: a group of rows refreshes together."""
    others = iter(_tensors(old))

    if old is None:
        return new

    def pick(x: Tensor) -> Tensor:
        rows = x.ndim > 0 and len(x) == len(fired)
        mask = fired.view(-1, *[1] * (x.ndim - 1)) if rows else fired[0]
        return torch.where(mask, x, next(others))

    return _mapped(new, pick)
