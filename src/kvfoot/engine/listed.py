"""Readers in a replayed step: lists of entries and whole rows by the same kernel, chosen between by lengths (D8).

A row that refreshes reads its whole table and none of its list, any other row the other way round; both are one launch
each for all rows, and an empty row costs nothing. So a refresh that is decided on the device needs no host, and scores
are written by rows that refresh alone. Where the step itself says that all do, or none, one of the two is left out.

All sequences of a shape are asked about at once (`Reader.batched`). A queue is a ring of located entries: moved on for
all layers in one launch as the step begins, so that a layer that refreshes nothing is one launch of attention.
"""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.rings import Rings
from kvfoot.attention.state import State
from kvfoot.cache.kv import KVCache
from kvfoot.core.reading import Read, Reader
from kvfoot.engine import states
from kvfoot.engine.aside import Aside
from kvfoot.engine.asked import Asked, Step, take
from kvfoot.engine.buffers import Buffers
from kvfoot.engine.fires import Fires, firing, put, whole
from kvfoot.engine.groups import Cost, Group, Tally, grouped, queue_of
from kvfoot.engine.ledger import Ledger
from kvfoot.engine.sequence import Sequence


class Lists:
    """The states of one method's readers at fixed addresses, and their attention.

    steps: of every kind of step, the number of the one that was recorded.
    """

    def __init__(self, buffers: Buffers, cache: KVCache, backend: Backend, method: Reader):
        self.buffers, self.cache, self.backend, self.method = buffers, cache, backend, method
        self.groups: list[Group] = []
        self.rings: Rings | None = None
        self.aside = Aside(buffers.device)
        self.sequences: list[Sequence] = []
        self.steps: dict[str, int] = {}
        self.costs: dict[str, list[tuple[Group, Cost]]] = {}
        self._now: dict[tuple[Any, ...], Any] = {}
        self._newest = self._live = buffers.words["lens"]
        self._plans: dict[str, tuple[Tensor, Any]] = {}
        self._tallies: dict[str, Tally] = {}
        self._parts: dict[int, dict[tuple[int, tuple[int, ...]], Any]] = {}

    def attach(self, sequences: Many[Sequence]) -> None:
        """Copy the sequences' states in: of the shapes that are here already (`fits`), or the first ones."""
        self.sequences = list(sequences)
        given = grouped(sequences, self.method, self.cache.geometry.kv_heads, self.buffers.device)
        if not self.groups:
            self.groups = given
            self.rings = self._room()
        elif self.method.lasting:
            for mine, theirs in zip(self.groups, given, strict=True):
                states.copy(mine.state, theirs.state)
        for group in self.groups if self.rings is not None else []:
            self._fill(
                group, [queue_of(self.method, sequences[b].reading[group.layer, group.heads]) for b in group.members]
            )

    def fits(self, sequences: Many[Sequence]) -> bool:
        """Whether what is recorded suits these: the same groups of rows, states of the same shapes."""
        theirs = grouped(sequences, self.method, self.cache.geometry.kv_heads, self.buffers.device)
        return not self.groups or [g.key for g in self.groups] == [g.key for g in theirs]

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
        self._newest, self._live = (lens - 1).clamp(min=0), lens > 0
        self._plans, self.costs[kind], self._now = {}, [], {}
        self._tallies.pop(kind, None)
        self._parts.clear()
        if self.rings is not None:
            self.backend.push(self.rings, lens, self.buffers.words["slots"])
        self.buffers.fired.copy_(self._live)  # rows of which the device decides are put right where it does

    def end(self) -> None:
        """All layers have attended; what is read of the step comes after this."""
        self.aside.settle()

    def attend(self, layer: int, kind: str, q: Tensor, scale: float, plan: Any) -> State:
        """q [R, H, D] of the new tokens, whose entries are stored already. The states move on by a step.

        plan: of whole rows.
        """
        self.aside.settle()
        b, pool = self.buffers, self.cache.pool
        table, lens, live = b.tables[layer], b.words["lens"][layer], self._live[layer]
        newest, stored = self._newest[layer, :, None], b.words["slots"][layer]
        step = Step(layer, q, newest, stored, pool, table.shape[1] * pool.page_size)
        asked = [(g, *self._ask(g, kind, step)) for g in self.groups if g.layer == layer]
        reads = [(group, chosen) for group, _, _, chosen in asked]
        fires = firing(reads, live, self._owned)
        every = [group for group, chosen in reads if chosen.slots is None]
        full = any(chosen.full for _, chosen in reads)
        if full and not all(chosen.full for _, chosen in reads if chosen.refresh is not False):
            raise TypeError(f"{self.method.name}: a refresh reads everything in some rows of a step, and not in others")
        attended, emitted, rows = None, None, fires
        if fires is not False or every:
            rows = whole(fires, every, live, self._owned)
            own, plan = (lens, plan) if isinstance(rows, bool) else (lens.where(rows, 0), None)
            given = (q, pool.k, pool.v, table, own, scale)
            if fires is False:
                attended, _ = self.backend.paged(*given, plan=plan)
            else:
                attended, emitted = self.backend.emitted(*given, plan=plan, values=full or bool(every))
        if isinstance(fires, Tensor):
            b.fired[layer].copy_(fires)
        lists: list[tuple[Group, Read, int]] = []
        later: list[Callable[[], Any]] = []
        for group, query, went, chosen in asked:
            slots, renewed = chosen.slots, 0
            if chosen.refresh is False or emitted is None:
                self._keep(group, went)
            else:
                query.emitted = emitted.of(group.rows)
                choose = partial(self._refresh, group, query, went, chosen, fires)
                if full:  # nobody reads what is chosen before the next layer, or the next step
                    later.append(choose)
                else:
                    slots, renewed = choose()
            read = group.length + 1 if isinstance(slots, Rings) else _width(slots)
            lists.append((group, replace(chosen, slots=slots), renewed))
            cost = Cost(read or None, chosen.refresh is not False, chosen.full, renewed, chosen.extra)
            self.costs[kind].append((group, cost))
        lists = [x for x in lists if x[1].slots is not None]
        out = attended
        if lists and not (fires is True and full):
            out = self._read(layer, lists, fires, lens, q, scale)
            if attended is not None and (full or every):
                # Rows that refresh without reading everything are in `attended` for their scores alone.
                rows = rows if full else whole(False, every, live, self._owned)
                assert isinstance(rows, Tensor)
                both = torch.where(rows[:, None, None], attended.out, out.out)
                out = State(both, torch.where(rows[:, None], attended.lse, out.lse))
        if later:
            self.aside.run(partial(_each, later))
        assert out is not None
        return out

    @property
    def _owned(self) -> int:
        """Rows of a layer that are somebody's."""
        return len(self.sequences) * self.cache.geometry.kv_heads

    def _ask(self, group: Group, kind: str, step: Step) -> tuple[Any, Any, Read]:
        sequence = self.sequences[group.members[0]]
        n = max(int(sequence.rows.lens[group.layer, group.heads[0]]), group.size) + 1
        below = next(
            (
                self._now[k]
                for i in range(group.layer - 1, -1, -1)
                if (k := (i, group.heads, group.members)) in self._now
            ),
            None,
        )
        query: Any = Asked(step, group.rows, len(group.members), self.steps[kind], n, group.size, below)
        state, chosen = self.method.read(group.state, query)
        if query.pushed != (self.rings is not None):
            raise TypeError(f"{self.method.name}: `read` pushes its queue, and no other, at every step (Reader.queue)")
        return query, state, chosen

    def _refresh(self, group: Group, query: Any, went: Any, chosen: Read, fires: Fires) -> tuple[Any, int]:
        """Choose anew: the list to read unless everything is read, and how much of it is new where rows fire."""
        state, better = self.method.refresh(went, query)
        state, slots, renewed = self._renewed(group, fires, state), chosen.slots, better.shape[1]
        fired = fires if isinstance(fires, bool) else take(fires, group.rows)
        if isinstance(slots, Tensor) and not chosen.full:
            mixed = better if isinstance(fired, bool) else better.where(fired[:, None], slots[:, :renewed])
            slots = torch.cat([mixed, slots[:, renewed:]], 1)
        if not isinstance(fired, bool):
            state = states.chosen(fired, len(group.members), state, went)
        self._keep(group, state)
        return slots, renewed

    def _renewed(self, group: Group, fires: Fires, state: Any) -> Any:
        """A state that has chosen anew, its queue in the ring where rows fire."""
        if self.rings is None or self.method.queue is None:
            return state
        queue = queue_of(self.method, state)
        if queue.shape[1] != group.length:
            raise TypeError(f"{self.method.name}: a queue of {group.length} entries became one of {queue.shape[1]}")
        fired = self._live[group.layer] if isinstance(fires, bool) else fires
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
        counts, plan = self._counted("renewed" if fires is True else "queued")
        counts, plan = counts[layer], None if plan is None else plan.layer(layer)
        if not isinstance(fires, bool):
            full = any(chosen.full for _, chosen, _ in lists)
            renewed = counts.new_zeros(()) if full else self._counted("renewed")[0][layer]
            counts, plan = torch.where(fires, renewed, counts), None
        return self.backend.paged(q, k, v, self.rings.slot[layer], counts, scale, plan=plan)[0]

    def _counted(self, what: str) -> tuple[Tensor, Any]:
        """How much of its ring every row reads, [L, R], and the plan of all layers: once a step."""
        assert self.rings is not None
        if what not in self._plans:
            width = self.rings.width if what == "queued" else (self.rings.width - 1).clamp(min=0)
            counts = width.where(self._live, 0)
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
                put(listed[:, : chosen.slots.shape[1]], group.rows, chosen.slots)
            count: Tensor | int = chosen.slots.shape[1]
            if chosen.refresh is not False and fires is not False:
                anew = 0 if chosen.full else renewed
                mine = torch.full(group.number.shape, chosen.slots.shape[1], device=lens.device)
                count = anew if fires is True else mine.masked_fill(take(fires, group.rows), anew)
            put(counts, group.rows, count)
        return listed.clamp(min=0), counts.where(lens > 0, 0)  # an idle row lists what it does not have

    def _keep(self, group: Group, state: Any) -> None:
        self._now[group.place] = state
        if self.method.lasting:
            states.copy(group.state, state)

    def account(self, ledger: Ledger, kind: str, fired: np.ndarray) -> None:
        """The step's reads into the sequences' traces. fired: bool [L, R]."""
        if kind not in self._tallies:
            self._tallies[kind] = Tally.of(self.costs[kind], ledger.shape)
        fired = fired.reshape(ledger.shape)
        for b in np.flatnonzero(ledger.active[: len(ledger.sequences)]).tolist():
            self._tallies[kind].add(ledger.sequences[b].trace.passes[-1], b, fired[:, b])
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


def _each(work: Many[Callable[[], Any]]) -> None:
    for one in work:
        one()
