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
from kvfoot.attention.pages import Pages
from kvfoot.attention.rings import Rings
from kvfoot.attention.state import State
from kvfoot.cache.kv import KVCache
from kvfoot.core.reading import Read, Reader
from kvfoot.engine import states
from kvfoot.engine.aside import Aside
from kvfoot.engine.asked import Asked, Step, take
from kvfoot.engine.buffers import Buffers
from kvfoot.engine.chosen import Choice, Chosen
from kvfoot.engine.fires import Fires, firing, whole
from kvfoot.engine.groups import Cost, Group, Tally, queue_of
from kvfoot.engine.ledger import Ledger
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.standing import Standing


class Lists:
    """The attention of one method's readers, whose states are `standing`.

    steps: of every kind of step, the number of the one that was recorded.
    """

    def __init__(self, buffers: Buffers, cache: KVCache, backend: Backend, method: Reader):
        self.buffers, self.cache, self.backend, self.method = buffers, cache, backend, method
        self.standing = Standing(buffers, cache, backend, method)
        self.aside = Aside(buffers.device)
        self.sequences: list[Sequence] = []
        self.steps: dict[str, int] = {}
        self.costs: dict[str, list[tuple[Group, Cost]]] = {}
        self._newest = self._live = buffers.words["lens"]
        self._chosen = Chosen(buffers, cache, backend, None)
        self._tallies: dict[str, Tally] = {}

    def attach(self, sequences: Many[Sequence]) -> None:
        """Take over the sequences' states."""
        self.sequences = list(sequences)
        self.standing.attach(sequences)

    def detach(self) -> None:
        """Give the sequences their states back, and forget them: a recording outlives its batch."""
        self.standing.detach(self.sequences)
        self.sequences = []

    def begin(self, kind: str) -> None:
        """A step begins: what is the same in all layers."""
        lens = self.buffers.words["lens"]
        self._newest, self._live = (lens - 1).clamp(min=0), lens > 0
        self.costs[kind] = []
        self._tallies.pop(kind, None)
        self.standing.begin()
        self._chosen = Chosen(self.buffers, self.cache, self.backend, self.standing.rings)
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
        step = Step(layer, q, newest, lens, stored, pool, self.backend, table.shape[1] * pool.page_size)
        asked = [(g, *self._ask(g, kind, step)) for g in self.standing.groups if g.layer == layer]
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
        choices: list[Choice] = []
        later: list[Callable[[], Any]] = []
        for group, query, went, chosen in asked:
            slots, renewed = chosen.slots, 0
            if chosen.refresh is False or emitted is None:
                self.standing.keep(group, went)
            else:
                query.emitted = emitted.of(group.rows)
                choose = partial(self._refresh, group, query, went, chosen, fires)
                if full:  # nobody reads what is chosen before the next layer, or the next step
                    later.append(choose)
                else:
                    slots, renewed = choose()
            choices.append(Choice(group, replace(chosen, slots=slots), renewed))
            self.costs[kind].append((group, _cost(group, query, choices[-1])))
        choices = [choice for choice in choices if choice.read.slots is not None]
        out = attended
        if choices and not (fires is True and full):
            out = self._chosen.attend(layer, choices, fires, q, scale)
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
        below, count = self.standing.below(group), len(group.members)
        query: Any = Asked(step, group.rows, count, self.steps[kind], n, group.size, below)
        state, chosen = self.method.read(group.state, query)
        if query.pushed != (self.standing.rings is not None):
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
        self.standing.keep(group, state)
        return slots, renewed

    def _renewed(self, group: Group, fires: Fires, state: Any) -> Any:
        """A state that has chosen anew, its queue in the ring where rows fire."""
        rings = self.standing.rings
        if rings is None or self.method.queue is None:
            return state
        queue = queue_of(self.method, state)
        if queue.shape[1] != group.length:
            raise TypeError(f"{self.method.name}: a queue of {group.length} entries became one of {queue.shape[1]}")
        fired = self._live[group.layer] if isinstance(fires, bool) else fires
        table = self.buffers.tables[group.layer]
        self.backend.refill(rings, group.layer, group.number, queue, fired, table, self.cache.pool.page_size)
        return replace(state, **{self.method.queue: rings})

    def account(self, ledger: Ledger, kind: str, fired: np.ndarray) -> None:
        """The step's reads into the sequences' traces. fired: bool [L, R]."""
        if kind not in self._tallies:
            self._tallies[kind] = Tally.of(self.costs[kind], ledger.shape)
        fired = fired.reshape(ledger.shape)
        for b in np.flatnonzero(ledger.active[: len(ledger.sequences)]).tolist():
            self._tallies[kind].add(ledger.sequences[b].trace.passes[-1], b, fired[:, b])
            self.standing.account(b, ledger.sequences[b])


def _cost(group: Group, query: Any, choice: Choice) -> Cost:
    slots, read, page = choice.read.slots, choice.read, 0
    width = slots.shape[1] if isinstance(slots, Tensor) else group.length + 1 if isinstance(slots, Rings) else None
    if isinstance(slots, Pages):
        width, page = slots.number.shape[1], slots.size
    return Cost(width, read.refresh is not False, read.full, choice.renewed, read.extra, page, query.bounded)


def _each(work: Many[Callable[[], Any]]) -> None:
    for one in work:
        one()
