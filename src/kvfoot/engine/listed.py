"""Readers in a replayed step: lists of entries and whole rows by the same kernel, chosen between by lengths (D8).

A row that refreshes reads its whole table and none of its list, any other row the other way round; both are one launch
each for all rows, and an empty row costs nothing. So a refresh that is decided on the device needs no host, and scores
are written by rows that refresh alone. Where the step itself says that all do, or none, one of the two is left out.

All sequences of a shape are asked about at once (`Reader.batched`). A queue is a ring of located entries: moved on for
all layers in one launch as the step begins, so that a layer that refreshes nothing is one launch of attention.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.rings import Rings
from kvfoot.attention.state import State, merge
from kvfoot.cache.kv import KVCache
from kvfoot.core.reading import Read, Reader
from kvfoot.engine import states
from kvfoot.engine.asked import Asked, Rows, Step, take
from kvfoot.engine.buffers import Buffers
from kvfoot.engine.ledger import WHOLE, Ledger
from kvfoot.engine.sequence import Sequence

Fires = bool | Tensor
"""Which of a layer's rows refresh: all, none, or bool [R]."""


@dataclass(eq=False)
class Group:
    """Rows that are asked about together: the same heads of sequences `members` of the batch, state by state of a shape.

    number: int64 [E], the rows among the layer's R; rows: the same, as neighbours where they are.
    """

    layer: int
    heads: tuple[int, ...]
    members: tuple[int, ...]
    size: int
    number: Tensor
    rows: Rows
    state: Any
    length: int = 0
    """Of the queue."""

    @property
    def place(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        return self.layer, self.heads, self.members

    @property
    def key(self) -> tuple[Any, ...]:
        return *self.place, self.size, self.length, states.shapes(self.state)


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


@dataclass(frozen=True)
class Tally:
    """The costs of a kind of step by (layer, place in the batch, KV head), as arrays. here: whether there is one."""

    here: np.ndarray
    read: np.ndarray
    fires: np.ndarray
    full: np.ndarray
    renewed: np.ndarray
    extra: np.ndarray

    @staticmethod
    def of(costs: list[tuple[Group, Cost]], shape: tuple[int, ...]) -> "Tally":
        t = Tally(*(np.zeros(shape, kind) for kind in (bool, np.int64, bool, bool, np.int64, np.float64)))
        for group, cost in costs:
            at = np.ix_([group.layer], group.members, group.heads)
            t.here[at], t.fires[at], t.full[at] = True, cost.fires, cost.full
            t.read[at] = WHOLE if cost.read is None else cost.read
            t.renewed[at], t.extra[at] = cost.renewed, cost.extra
        return t


class Lists:
    """The states of one method's readers at fixed addresses, and their attention.

    steps: of every kind of step, the number of the one that was recorded.
    """

    def __init__(self, buffers: Buffers, cache: KVCache, backend: Backend, method: Reader):
        self.buffers, self.cache, self.backend, self.method = buffers, cache, backend, method
        self.groups: list[Group] = []
        self.rings: Rings | None = None
        self.sequences: list[Sequence] = []
        self.steps: dict[str, int] = {}
        self.costs: dict[str, list[tuple[Group, Cost]]] = {}
        self._now: dict[tuple[Any, ...], Any] = {}
        self._newest = buffers.words["lens"]
        self._plans: dict[str, tuple[Tensor, Any]] = {}
        self._tallies: dict[str, Tally] = {}
        self._parts: dict[int, dict[tuple[int, tuple[int, ...]], Any]] = {}

    def attach(self, sequences: Many[Sequence]) -> None:
        """Copy the sequences' states in: of the shapes that are here already (`fits`), or the first ones."""
        self.sequences = list(sequences)
        given = self._grouped(sequences)
        if not self.groups:
            self.groups = given
            self.rings = self._room()
        elif self.method.lasting:
            for mine, theirs in zip(self.groups, given, strict=True):
                states.copy(mine.state, theirs.state)
        for group in self.groups if self.rings is not None else []:
            self._fill(group, [self._queue(sequences[b].reading[group.layer, group.heads]) for b in group.members])

    def fits(self, sequences: Many[Sequence]) -> bool:
        """Whether what is recorded suits these: the same groups of rows, states of the same shapes."""
        return not self.groups or [g.key for g in self.groups] == [g.key for g in self._grouped(sequences)]

    def _grouped(self, sequences: Many[Sequence]) -> list[Group]:
        found: dict[tuple[Any, ...], tuple[list[int], list[Any]]] = {}
        for b, s in enumerate(sequences):
            for (layer, heads), state in s.reading.items():
                own = state if self.method.lasting else None
                length = 0 if self.method.queue is None else self._queue(own).shape[1]
                shape = (layer, heads, s.plan.reads or 0, length, states.shapes(own))
                members, some = found.setdefault(shape if self.method.batched else (*shape, b), ([], []))
                members.append(b)
                some.append(own if self.method.queue is None else replace(own, **{self.method.queue: None}))
        return [
            Group(layer, heads, tuple(members), size, *self._located(heads, members), states.joined(some), length)
            for (layer, heads, size, length, *_), (members, some) in found.items()
        ]

    def _queue(self, state: Any) -> Tensor:
        assert self.method.queue is not None
        found = getattr(state, self.method.queue)
        assert isinstance(found, Tensor)
        return found

    def _located(self, heads: tuple[int, ...], members: list[int]) -> tuple[Tensor, Rows]:
        every = self.cache.geometry.kv_heads
        rows = [b * every + head for b in members for head in heads]
        number = torch.tensor(rows, device=self.buffers.device)
        neighbours = rows == list(range(rows[0], rows[0] + len(rows)))
        return number, slice(rows[0], rows[-1] + 1) if neighbours else number

    def _room(self) -> Rings | None:
        """Rings for all groups, and their states with the ring where the queue was."""
        if self.method.queue is None:
            return None
        L, R = self.buffers.words["lens"].shape
        rings = Rings.empty(L, R, 1 + max(g.length for g in self.groups), self.buffers.device)
        for group in self.groups:
            group.state = replace(group.state, **{self.method.queue: rings})
            rings.width[group.layer].index_fill_(0, group.number, group.length + 1)
        return rings

    def _fill(self, group: Group, queues: Many[Tensor]) -> None:
        assert self.rings is not None
        every = torch.ones(self.buffers.rows, dtype=torch.bool, device=self.buffers.device)
        table, size = self.buffers.tables[group.layer], self.cache.pool.page_size
        self.backend.refill(self.rings, group.layer, group.number, torch.cat(list(queues)), every, table, size)

    def detach(self, sequences: Many[Sequence]) -> None:
        """Give the sequences their states back."""
        for group in self.groups if self.method.lasting else []:
            state = states.mapped(group.state, lambda x: x.clone())
            if self.rings is not None and self.method.queue is not None:
                queue = self.rings.queue(group.layer, group.number, group.length)
                state = replace(state, **{self.method.queue: queue})
            for i, b in enumerate(group.members):
                if b < len(sequences):
                    sequences[b].reading[group.layer, group.heads] = states.part(state, i, len(group.members))

    def saved(self) -> list[Any]:
        """What warming runs change: not the rings, in which rows of length 0 stay as they are."""
        return [states.mapped(group.state, lambda x: x.clone()) for group in self.groups]

    def restore(self, saved: list[Any]) -> None:
        for group, state in zip(self.groups, saved, strict=True):
            states.copy(group.state, state)

    def begin(self, kind: str) -> None:
        """A step begins: what is the same in all layers."""
        lens = self.buffers.words["lens"]
        self._newest, self._plans, self.costs[kind], self._now = (lens - 1).clamp(min=0), {}, [], {}
        self._tallies.pop(kind, None)
        self._parts.clear()
        if self.rings is not None:
            self.backend.push(self.rings, lens, self.buffers.words["slots"])

    def attend(self, layer: int, kind: str, q: Tensor, key: Tensor, value: Tensor, scale: float, plan: Any) -> State:
        """q [R, H, D], key and value [R, D] of the new tokens, stored already. The states move on by a step.

        plan: of whole rows.
        """
        b, pool, method = self.buffers, self.cache.pool, self.method
        table, lens = b.tables[layer], b.words["lens"][layer]
        step = Step(layer, q, key, value, self._newest[layer, :, None], table.shape[1] * pool.page_size)
        asked = [(g, *self._ask(g, kind, step)) for g in self.groups if g.layer == layer]
        reads = [(group, chosen) for group, _, _, chosen in asked]
        fires = self._fires(reads, len(lens))
        every = [group for group, chosen in reads if chosen.slots is None]
        full = any(chosen.full for _, chosen in reads)
        whole, emitted = None, None
        if fires is not False or every:
            rows = self._marked(fires, every, len(lens))
            own, plan = (lens, plan) if rows is True else (lens.where(rows, 0), None)
            given = (q, pool.k, pool.v, table, own, scale)
            if fires is False:
                whole, _ = self.backend.paged(*given, plan=plan)
            else:
                whole, emitted = self.backend.emitted(*given, plan=plan, values=full or bool(every))
        lists: list[tuple[Group, Read, int]] = []
        for group, query, state, chosen in asked:
            renewed = 0
            if chosen.refresh is not False and fires is not False:
                query.emitted = emitted.of(group.rows)
                fired = fires if isinstance(fires, bool) else take(fires, group.rows)
                state, better = method.refresh(state, query)
                renewed = better.shape[1]
                state = self._renewed(group, fires, lens, state)
                if isinstance(chosen.slots, Tensor) and not chosen.full:
                    rest = chosen.slots[:, renewed:]
                    mixed = better if fired is True else better.where(fired[:, None], chosen.slots[:, :renewed])
                    chosen = replace(chosen, slots=torch.cat([mixed, rest], 1))
                if not isinstance(fired, bool):
                    state = states.chosen(fired, len(group.members), state, group.state)
            self._keep(group, state)
            listed = group.length + 1 if isinstance(chosen.slots, Rings) else _width(chosen.slots)
            lists.append((group, chosen, renewed))
            cost = Cost(listed or None, chosen.refresh is not False, chosen.full, renewed, chosen.extra)
            self.costs[kind].append((group, cost))
        if fires is not False:
            b.fired[layer].copy_((lens > 0) if fires is True else fires & (lens > 0))
        lists = [x for x in lists if x[1].slots is not None]
        if not lists or (fires is True and all(chosen.full for _, chosen, _ in lists)):
            assert whole is not None
            return whole
        partial = self._read(layer, lists, fires, lens, q, scale)
        # Rows that refresh without reading everything are in `whole` for their scores alone.
        return merge(whole, partial) if (full or every) and whole is not None else partial

    def _ask(self, group: Group, kind: str, step: Step) -> tuple[Asked, Any, Read]:
        sequence = self.sequences[group.members[0]]
        n = max(int(sequence.rows.lens[group.layer, group.heads[0]]), group.size) + 1
        below = next(
            (self._now[k] for i in range(group.layer - 1, -1, -1) if (k := (i, group.heads, group.members)) in self._now),
            None,
        )
        query = Asked(step, group.rows, len(group.members), self.steps[kind], n, group.size, below)
        state, chosen = self.method.read(group.state, query)
        if query.pushed != (self.rings is not None):
            raise TypeError(f"{self.method.name}: `read` pushes its queue, and no other, at every step (Reader.queue)")
        return query, state, chosen

    def _fires(self, reads: Many[tuple[Group, Read]], rows: int) -> Fires:
        asks = [chosen.refresh for _, chosen in reads]
        if not any(isinstance(ask, Tensor) for ask in asks):
            if not any(asks):
                return False
            if all(asks) and sum(len(group.number) for group, _ in reads) >= len(self.sequences) * self._heads:
                return True
        fires = torch.zeros(rows, dtype=torch.bool, device=self._newest.device)
        for group, chosen in reads:
            if isinstance(chosen.refresh, Tensor):
                # One per sequence, for all of its heads.
                ask = chosen.refresh.reshape(-1, 1).expand(len(group.members), len(group.heads))
                _put(fires, group.rows, ask.reshape(-1))
            elif chosen.refresh:
                _put(fires, group.rows, True)
        return fires

    @property
    def _heads(self) -> int:
        return self.cache.geometry.kv_heads

    def _marked(self, fires: Fires, every: Many[Group], rows: int) -> Fires:
        """Rows that are read whole; idle ones may be among them."""
        if fires is True or sum(len(group.number) for group in every) >= len(self.sequences) * self._heads:
            return True
        marked = torch.zeros(rows, dtype=torch.bool, device=self._newest.device) if fires is False else fires.clone()
        for group in every:
            _put(marked, group.rows, True)
        return marked

    def _renewed(self, group: Group, fires: Fires, lens: Tensor, state: Any) -> Any:
        """A state that has chosen anew, its queue in the ring where rows fire."""
        if self.rings is None or self.method.queue is None:
            return state
        queue = self._queue(state)
        if queue.shape[1] != group.length:
            raise TypeError(f"{self.method.name}: a queue of {group.length} entries became one of {queue.shape[1]}")
        fired = (lens > 0) if isinstance(fires, bool) else fires & (lens > 0)
        table = self.buffers.tables[group.layer]
        self.backend.refill(self.rings, group.layer, group.number, queue, fired, table, self.cache.pool.page_size)
        return replace(state, **{self.method.queue: self.rings})

    def _read(
        self, layer: int, lists: list[tuple[Group, Read, int]], fires: Fires, lens: Tensor, q: Tensor, scale: float
    ) -> State:
        """Attention to the lists, of rows that fire to what they have chosen unless they read everything."""
        pool = self.cache.pool
        if self.rings is None:
            read, counts = self._listed(lists, fires, lens)
            return self.backend.paged(q, pool.k, pool.v, self.buffers.tables[layer], counts, scale, read=read)[0]
        k, v = (x.view(-1, 1, x.shape[2]) for x in (pool.k, pool.v))
        plan = None
        if isinstance(fires, bool):
            counts, plan = self._counted("renewed" if fires else "queued")
            counts, plan = counts[layer], None if plan is None else plan.layer(layer)
        else:
            full = all(chosen.full for _, chosen, _ in lists)
            renewed: Tensor | int = 0 if full else (self.rings.width[layer] - 1).clamp(min=0)
            counts = torch.where(fires, renewed, self.rings.width[layer]).where(lens > 0, 0)
        return self.backend.paged(q, k, v, self.rings.slot[layer], counts, scale, plan=plan)[0]

    def _counted(self, what: str) -> tuple[Tensor, Any]:
        """How much of its ring every row reads, [L, R], and the plan of all layers: once a step."""
        assert self.rings is not None
        if what not in self._plans:
            width = self.rings.width if what == "queued" else (self.rings.width - 1).clamp(min=0)
            counts = width.where(self.buffers.words["lens"] > 0, 0)
            pool = self.cache.pool
            self._plans[what] = counts, self.backend.planned(counts, pool.head_dim, pool.dtype)
        return self._plans[what]

    def _listed(self, lists: list[tuple[Group, Read, int]], fires: Fires, lens: Tensor) -> tuple[Tensor, Tensor]:
        """All rows' lists int64 [R, K] and how much of each counts, 0 in idle rows."""
        widest = max(_width(chosen.slots) for _, chosen, _ in lists)
        listed = torch.zeros(len(lens), widest, dtype=torch.int64, device=lens.device)
        counts = torch.zeros(len(lens), dtype=torch.int64, device=lens.device)
        for group, chosen, renewed in lists:
            assert isinstance(chosen.slots, Tensor)
            if len(group.number) == len(lens):
                listed = chosen.slots
            else:
                _put(listed[:, : chosen.slots.shape[1]], group.rows, chosen.slots)
            count: Tensor | int = chosen.slots.shape[1]
            if chosen.refresh is not False and fires is not False:
                anew = 0 if chosen.full else renewed
                count = anew if fires is True else torch.where(take(fires, group.rows), anew, count)
            _put(counts, group.rows, count)
        return listed.clamp(min=0), counts.where(lens > 0, 0)  # an idle row lists what it does not have

    def _keep(self, group: Group, state: Any) -> None:
        self._now[group.place] = state
        if self.method.lasting:
            states.copy(group.state, state)

    def account(self, ledger: Ledger, kind: str, fired: np.ndarray) -> None:
        """The step's reads into the sequences' traces. fired: bool [L, R]."""
        if kind not in self._tallies:
            self._tallies[kind] = Tally.of(self.costs[kind], ledger.shape)
        t, fired = self._tallies[kind], fired.reshape(ledger.shape)
        for b in np.flatnonzero(ledger.active[: len(ledger.sequences)]).tolist():
            p, own = ledger.sequences[b].trace.passes[-1], t.here[:, b]
            assert p.loaded is not None and p.refreshed is not None and p.scan is not None  # noqa: PT018
            n, refreshed = p.before + 1, fired[:, b] & t.fires[:, b]
            read = np.where(refreshed, np.where(t.full[:, b], n, t.renewed[:, b]), np.minimum(t.read[:, b], n))
            p.loaded[own], p.refreshed[own] = read[own], refreshed[own]
            p.scan[own] += (np.where(refreshed, n, 0) + 2 * t.extra[:, b])[own]
            if not self.method.lasting:  # what it holds, not what it will use
                ledger.sequences[b].reading |= self._held(b)

    def _held(self, b: int) -> dict[tuple[int, tuple[int, ...]], Any]:
        """The step's own states of a sequence, at their fixed addresses."""
        if b not in self._parts:
            own = [g for g in self.groups if b in g.members]
            self._parts[b] = {
                (g.layer, g.heads): states.part(self._now[g.place], g.members.index(b), len(g.members)) for g in own
            }
        return self._parts[b]


def _width(slots: Any) -> int:
    return slots.shape[1] if isinstance(slots, Tensor) else 0


def _put(x: Tensor, rows: Rows, values: Tensor | int | bool) -> None:
    if isinstance(rows, slice):
        x[rows].copy_(values) if isinstance(values, Tensor) else x[rows].fill_(values)
    elif isinstance(values, Tensor):
        x.index_copy_(0, rows, values)
    else:
        x.index_fill_(0, rows, values)
