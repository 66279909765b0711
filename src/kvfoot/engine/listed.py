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
from kvfoot.engine.asked import Asked
from kvfoot.engine.buffers import Buffers
from kvfoot.engine.ledger import Ledger
from kvfoot.engine.sequence import Sequence

Place = tuple[int, int, tuple[int, ...]]
"""(place in the batch, layer, KV heads): whose state."""
Rows = slice | Tensor
"""Among a layer's R rows: neighbours, or int64 numbers."""


@dataclass(frozen=True)
class Cost:
    """Entries that a step of a kind reads per row, known when it is recorded: `read` of them by the list, None for all.

    fires: a row may refresh; full: it then reads all that is stored, else `renewed` entries. extra: see Read.
    """

    read: int | None
    fires: bool
    full: bool
    renewed: int
    extra: float


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
        self._rows: dict[Place, Rows] = {}
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
                self._rows[place] = self._located(place)

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

    def attend(self, layer: int, kind: str, q: Tensor, key: Tensor, value: Tensor, scale: float) -> State:
        """q [R, H, D], key and value [R, D] of the new tokens, stored already. The states move on by a step."""
        b, pool = self.buffers, self.cache.pool
        table, lens = b.tables[layer], b.words["lens"][layer]
        newest = (lens[:, None] - 1).clamp(min=0)
        asked: dict[Place, tuple[Asked, Any, Read]] = {}
        for place in (p for p in self.states if p[1] == layer):
            size, own = self.sequences[place[0]].plan.reads or 0, self._rows[place]
            n = max(int(self.sequences[place[0]].rows.lens[layer, place[2][0]]), size) + 1
            of = [_take(x, own) for x in (q, key, value, newest, table)]
            query = Asked(layer, self.steps[kind], n, size, of[0], of[1], of[2], of[3], of[4], scale, pool.k)
            query.below = self._below(place)
            state, chosen = self.method.read(self.states[place], query)
            asked[place] = query, state, chosen
        choices = {place: chosen for place, (_, _, chosen) in asked.items()}
        fires = self._fires(choices, len(lens), q.device)
        whole, weights = None, None
        every = [self._rows[place] for place, chosen in choices.items() if chosen.slots is None]
        if fires is not None or every:
            emitted = 0 if fires is None or self.method.by_logits else table.shape[1] * pool.page_size
            reads = torch.zeros(len(lens), dtype=torch.bool, device=q.device) if fires is None else fires.clone()
            for own in every:
                _fill(reads, own)
            whole, weights = self.backend.paged(q, pool.k, pool.v, table, lens.where(reads, 0), scale, width=emitted)
        lists: list[tuple[Rows, Tensor, Tensor | int]] = []
        for place, (query, went, chosen) in asked.items():
            state, own, slots, renewed = went, self._rows[place], chosen.slots, 0
            listed = 0 if slots is None else slots.shape[1]
            count: Tensor | int = listed
            if fires is not None and chosen.refresh is not False:
                fired = _take(fires, own)
                query.weights = None if weights is None else _take(weights, own)
                state, better = self.method.refresh(went, query)
                state, renewed = _where(fired, state, went), better.shape[1]
                if slots is not None and not chosen.full:
                    slots = torch.cat([better.where(fired[:, None], slots[:, :renewed]), slots[:, renewed:]], 1)
                count = torch.full((len(fired),), listed, device=q.device).where(~fired, 0 if chosen.full else renewed)
            if slots is not None:
                lists.append((own, slots, count))
            self._keep(place, state)
            cost = Cost(listed or None, chosen.refresh is not False, chosen.full, renewed, chosen.extra)
            self.costs.setdefault(kind, {})[place] = cost
        if fires is not None:
            b.fired[layer].copy_(fires & (lens > 0))
        if not lists:
            assert whole is not None
            return whole
        read, counts = self._listed(lists, lens)
        part, _ = self.backend.paged(q, pool.k, pool.v, table, counts, scale, read=read)
        # Rows that refresh without reading everything are in `whole` for their scores alone.
        both = bool(every) or any(chosen.full for chosen in choices.values())
        return merge(whole, part) if both and whole is not None else part

    def _fires(self, choices: dict[Place, Read], rows: int, device: torch.device) -> Tensor | None:
        """bool [R]: rows that refresh; None in a kind of step where none can."""
        if all(chosen.refresh is False for chosen in choices.values()):
            return None
        fires = torch.zeros(rows, dtype=torch.bool, device=device)
        for place, chosen in choices.items():
            if isinstance(chosen.refresh, Tensor):
                _put(fires, self._rows[place], chosen.refresh.expand(len(place[2])))
            elif chosen.refresh:
                _fill(fires, self._rows[place])
        return fires

    def _listed(self, lists: list[tuple[Rows, Tensor, Tensor | int]], lens: Tensor) -> tuple[Tensor, Tensor]:
        """All rows' lists int64 [R, K] and how much of each counts, 0 in idle rows."""
        widths = {slots.shape[1] for _, slots, _ in lists}
        whole = len(widths) == 1 and sum(len(slots) for _, slots, _ in lists) == len(lens)
        here = lens > 0
        if whole and all(isinstance(own, slice) for own, _, _ in lists):
            listed = torch.cat([slots for _, slots, _ in lists]) if len(lists) > 1 else lists[0][1]
        else:
            listed = torch.zeros(len(lens), max(widths), dtype=torch.int64, device=lens.device)
            for own, slots, _ in lists:
                _put(listed[:, : slots.shape[1]], own, slots)
        listed = listed.clamp(min=0)  # an idle row lists what it does not have
        if whole and not any(isinstance(count, Tensor) for _, _, count in lists):
            return listed, here.long() * widths.pop()
        counts = torch.zeros(len(lens), dtype=torch.int64, device=lens.device)
        for own, slots, count in lists:
            given = count if isinstance(count, Tensor) else torch.full((len(slots),), count, device=lens.device)
            _put(counts, own, given)
        return listed, counts.where(here, 0)

    def _located(self, place: Place) -> Rows:
        b, _, heads = place
        first, every = b * self.cache.geometry.kv_heads, range(self.cache.geometry.kv_heads)
        if heads == tuple(every):
            return slice(first, first + len(every))
        return torch.tensor([first + head for head in heads], device=self.buffers.device)

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
            refreshed = cost.fires and bool(fired[layer, b * ledger.shape[2] + own[0]])
            read = n if cost.read is None else cost.read
            p.loaded[layer, own] = (n if cost.full else cost.renewed) if refreshed else read
            p.refreshed[layer, own] = refreshed
            if not self.method.lasting:  # what it holds, not what it will use
                ledger.sequences[b].reading[layer, heads] = self._now[b, layer, heads]
            p.scan[layer, own] += (n if refreshed else 0) + 2 * cost.extra


def _places(sequences: Many[Sequence]) -> dict[Place, Any]:
    return {(b, *key): state for b, s in enumerate(sequences) for key, state in s.reading.items()}


def _mapped(state: Any, change: Any) -> Any:
    """The state with every tensor changed; a state is a tensor, a dataclass of tensors, or None."""
    if isinstance(state, Tensor):
        return change(state)
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{f.name: _mapped(getattr(state, f.name), change) for f in fields(state)})
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
        if new is not to:
            to.copy_(new)


def _take(x: Tensor, rows: Rows) -> Tensor:
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def _put(x: Tensor, rows: Rows, values: Tensor) -> None:
    if isinstance(rows, slice):
        x[rows].copy_(values)
    else:
        x.index_copy_(0, rows, values)


def _fill(x: Tensor, rows: Rows) -> None:
    """True in some rows of a bool [R]."""
    if isinstance(rows, slice):
        x[rows].fill_(True)
    else:
        x.index_fill_(0, rows, True)


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
