"""The states of one method's readers while a batch is replayed: at fixed addresses, with room for the whole run.

Sequences whose states have a shape share one (`Group`). A queue becomes a ring, and what grows with the text gets as
many places as the page tables have entries; both are a row's own again when the sequences are given back.
"""

from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.rings import Rings
from kvfoot.cache.kv import KVCache
from kvfoot.core.reading import Reader
from kvfoot.engine import states
from kvfoot.engine.buffers import Buffers
from kvfoot.engine.groups import Group, grouped, queue_of
from kvfoot.engine.sequence import Sequence

Place = tuple[int, tuple[int, ...], tuple[int, ...]]


class Standing:
    """now: this step's states by `Group.place`."""

    def __init__(self, buffers: Buffers, cache: KVCache, backend: Backend, method: Reader):
        self.buffers, self.cache, self.backend, self.method = buffers, cache, backend, method
        self.groups: list[Group] = []
        self.rings: Rings | None = None
        self.now: dict[Place, Any] = {}
        self._shown: dict[int, np.ndarray] = {}
        self._parts: dict[int, dict[tuple[int, tuple[int, ...]], Any]] = {}

    def attach(self, sequences: Many[Sequence]) -> None:
        """Copy the sequences' states in: of the shapes that are here already (`fits`), or the first ones."""
        given = grouped(sequences, self.method, self.cache.geometry.kv_heads, self.buffers.device)
        if not self.groups:
            rings = self._ringed(given)
            for group in given:
                self._grown(group, sequences)
            self.groups, self.rings = given, rings  # at once: memory may have been short
        elif self.method.lasting:
            grown = self.method.grown
            for mine, theirs in zip(self.groups, given, strict=True):
                states.copy(states.without(mine.state, grown), theirs.state)
        for group in self.groups:
            if self.rings is not None:
                own = (sequences[b].reading[group.layer, group.heads] for b in group.members)
                self._fill(group, [queue_of(self.method, state) for state in own])
            for name in self.method.grown if group.state is not None else ():
                parts = getattr(group.state, name).chunk(len(group.members))
                for part, b in zip(parts, group.members, strict=True):
                    own = getattr(sequences[b].reading[group.layer, group.heads], name)
                    part[:, : own.shape[1]].copy_(own)
            for b in group.members if self.method.grown else ():
                self._show(group, b, sequences[b])  # what it had itself is free memory now
        self._shown.clear()

    def fits(self, sequences: Many[Sequence]) -> bool:
        """Whether what is recorded suits these: the same groups of rows, states of the same shapes."""
        theirs = grouped(sequences, self.method, self.cache.geometry.kv_heads, self.buffers.device)
        return not self.groups or [g.key for g in self.groups] == [g.key for g in theirs]

    def _ringed(self, groups: Many[Group]) -> Rings | None:
        """Rings for all groups, and their states with the ring where the queue was."""
        if self.method.queue is None:
            return None
        L, R = self.buffers.words["lens"].shape
        rings = Rings.empty(L, R, 1 + max(g.length for g in groups), self.buffers.device)
        for group in groups:
            group.state = replace(group.state, **{self.method.queue: rings})
            rings.width[group.layer].index_fill_(0, group.number, group.length + 1)
        return rings

    def _grown(self, group: Group, sequences: Many[Sequence]) -> None:
        """Room in a group's state for what grows, as far as the page tables go."""
        if group.state is None or not self.method.grown:
            return
        places = int(self.method.places(self.buffers.widths[group.layer] * self.cache.pool.page_size))
        own = sequences[group.members[0]].reading[group.layer, group.heads]
        room = {}
        for name in self.method.grown:
            like = getattr(own, name)
            room[name] = like.new_zeros((len(group.number), places, *like.shape[2:]))
        group.state = replace(group.state, **room)

    def _fill(self, group: Group, queues: Many[Tensor]) -> None:
        assert self.rings is not None
        every = torch.ones(self.buffers.rows, dtype=torch.bool, device=self.buffers.device)
        table, size = self.buffers.tables[group.layer], self.cache.pool.page_size
        self.backend.refill(self.rings, group.layer, group.number, torch.cat(list(queues)), every, table, size)

    def _part(self, group: Group, state: Any, b: int, sequence: Sequence) -> Any:
        """The state of the sequence at place b, a view; what grows as far as its row goes."""
        part = states.part(state, group.members.index(b), len(group.members))
        if part is None or not self.method.grown:
            return part
        places = int(self.method.places(int(sequence.rows.lens[group.layer, group.heads[0]])))
        return replace(part, **{name: getattr(part, name)[:, :places] for name in self.method.grown})

    def _show(self, group: Group, b: int, sequence: Sequence) -> None:
        """The sequence's own state is the one here."""
        sequence.reading[group.layer, group.heads] = self._part(group, group.state, b, sequence)

    def detach(self, sequences: Many[Sequence]) -> None:
        """Give the sequences their states back."""
        for group in self.groups if self.method.lasting else []:
            state = group.state
            if self.rings is not None and self.method.queue is not None:
                queue = self.rings.queue(group.layer, group.number, group.length)
                state = replace(state, **{self.method.queue: queue})
            for b in group.members:
                if b < len(sequences):
                    own = states.mapped(self._part(group, state, b, sequences[b]), lambda x: x.clone())
                    sequences[b].reading[group.layer, group.heads] = own

    def saved(self) -> list[Any]:
        """What warming runs change: not rings and what grows, in which rows of length 0 stay as they are."""
        grown = self.method.grown
        return [states.mapped(states.without(group.state, grown), lambda x: x.clone()) for group in self.groups]

    def restore(self, saved: list[Any]) -> None:
        for group, state in zip(self.groups, saved, strict=True):
            states.copy(states.without(group.state, self.method.grown), state)

    def begin(self) -> None:
        """A step begins: every row's newest entry into its ring."""
        self.now.clear()
        self._parts.clear()
        if self.rings is not None:
            self.backend.push(self.rings, self.buffers.words["lens"], self.buffers.words["slots"])

    def below(self, group: Group) -> Any:
        """This step's state of the same rows in the next lower layer that has one."""
        lower = ((i, group.heads, group.members) for i in range(group.layer - 1, -1, -1))
        return next((self.now[place] for place in lower if place in self.now), None)

    def keep(self, group: Group, state: Any) -> None:
        """The group's state after this step."""
        self.now[group.place] = state
        if self.method.lasting:
            states.copy(group.state, state)

    def account(self, b: int, sequence: Sequence) -> None:
        """What the sequence at place b holds after a step."""
        if not self.method.lasting:  # what it holds, not what it will use
            sequence.reading |= self._held(b)
        if self.method.grown:
            places = self.method.places(sequence.rows.lens)
            if b not in self._shown or (places != self._shown[b]).any():
                self._shown[b] = places
                for group in self.groups:
                    if b in group.members:
                        self._show(group, b, sequence)

    def _held(self, b: int) -> dict[tuple[int, tuple[int, ...]], Any]:
        """The step's own states of a sequence, at their fixed addresses."""
        if b not in self._parts:
            own = [g for g in self.groups if b in g.members]
            self._parts[b] = {
                (g.layer, g.heads): states.part(self.now[g.place], g.members.index(b), len(g.members)) for g in own
            }
        return self._parts[b]
