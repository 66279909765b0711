"""Attention to what rows have chosen to read: lists of entries, rings of them, whole pages.

A row that reads none of it has the count 0. Rings and pages are tables for the kernel as they are; a list is located.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.pages import Pages, grain
from kvfoot.attention.rings import Rings
from kvfoot.attention.state import State
from kvfoot.cache.kv import KVCache
from kvfoot.core.reading import Read
from kvfoot.engine.asked import take
from kvfoot.engine.buffers import Buffers
from kvfoot.engine.fires import Fires, put
from kvfoot.engine.groups import Group


@dataclass(frozen=True)
class Choice:
    """What a group reads by choice; where it refreshes without reading everything, the first `renewed` of it."""

    group: Group
    read: Read
    renewed: int


class Chosen:
    """One step's reads of this kind, layer by layer. What is the same in all layers is computed once a step."""

    def __init__(self, buffers: Buffers, cache: KVCache, backend: Backend, rings: Rings | None):
        self.buffers, self.cache, self.backend, self.rings = buffers, cache, backend, rings
        lens = buffers.words["lens"]
        self._lens, self._live = lens, lens > 0
        self._plans: dict[Any, tuple[Tensor, Any]] = {}

    def attend(self, layer: int, choices: list[Choice], fires: Fires, q: Tensor, scale: float) -> State:
        """Rows that fire attend to what they have chosen anew, unless they read everything."""
        if self.rings is not None:
            return self._ringed(self.rings, layer, choices, fires, q, scale)
        if isinstance(choices[0].read.slots, Pages):
            return self._paged(layer, choices, fires, q, scale)
        pool = self.cache.pool
        read, counts = self._listed(choices, fires, self._lens[layer])
        return self.backend.paged(q, pool.k, pool.v, self.buffers.tables[layer], counts, scale, read=read)[0]

    def _ringed(self, rings: Rings, layer: int, choices: list[Choice], fires: Fires, q: Tensor, scale: float) -> State:
        k, v = (x.view(-1, 1, x.shape[2]) for x in (self.cache.pool.k, self.cache.pool.v))
        counts, plan = self._queued(rings, "renewed" if fires is True else "queued")
        counts, plan = counts[layer], None if plan is None else plan.layer(layer)
        if not isinstance(fires, bool):
            full = any(choice.read.full for choice in choices)
            renewed = counts.new_zeros(()) if full else self._queued(rings, "renewed")[0][layer]
            counts, plan = torch.where(fires, renewed, counts), None
        return self.backend.paged(q, k, v, rings.slot[layer], counts, scale, plan=plan)[0]

    def _queued(self, rings: Rings, what: str) -> tuple[Tensor, Any]:
        """How much of its ring every row reads, [L, R], and the plan of all layers."""
        if what not in self._plans:
            width = rings.width if what == "queued" else (rings.width - 1).clamp(min=0)
            self._plans[what] = self._planned(width.where(self._live, 0))
        return self._plans[what]

    def _planned(self, counts: Tensor) -> tuple[Tensor, Any]:
        pool = self.cache.pool
        return counts, self.backend.planned(counts, pool.head_dim, pool.dtype)

    def _paged(self, layer: int, choices: list[Choice], fires: Fires, q: Tensor, scale: float) -> State:
        """Pages of the cache where theirs are made of them, else entries."""
        if fires is not False:
            raise TypeError("a reader of pages chooses them at every step and refreshes nothing")
        pool, table = self.cache.pool, self.buffers.tables[layer]
        listed: list[tuple[Group, Pages]] = [(choice.group, choice.read.slots) for choice in choices]
        units = [pages.units(pool.page_size) for _, pages in listed]
        size, number = grain(listed[0][1].size, pool.page_size), units[0]
        counts, plans = self._filled(listed[0][1])
        counts, plan = counts[layer], None if plans is None else plans.layer(layer)
        if len(number) < len(table):
            number = number.new_zeros(len(table), max(x.shape[1] for x in units))
            for (group, _), own in zip(listed, units, strict=True):
                put(number[:, : own.shape[1]], group.rows, own)
        if any(own.shape[1] != number.shape[1] for own in units):
            counts, plan = torch.zeros_like(counts), None
            for group, pages in listed:
                put(counts, group.rows, take(self._filled(pages)[0][layer], group.rows))
        if size != listed[0][1].size:  # the last page may end behind the table
            number = number.clamp(max=table.shape[1] * pool.page_size // size - 1)
        if size == 1:
            return self.backend.paged(q, pool.k, pool.v, table, counts, scale, read=number)[0]
        return self.backend.paged(q, pool.k, pool.v, table.gather(1, number), counts, scale, plan=plan)[0]

    def _filled(self, pages: Pages) -> tuple[Tensor, Any]:
        """Entries that every row would read of as many pages, its newest among them, [L, R], and the plan for that."""
        count, size = pages.number.shape[1], pages.size
        if (count, size) not in self._plans:
            newest = (self._lens - 1).clamp(min=0) % size
            counts = ((count - 1) * size + 1 + newest).where(self._live, 0)
            self._plans[count, size] = self._planned(counts)
        return self._plans[count, size]

    def _listed(self, choices: list[Choice], fires: Fires, lens: Tensor) -> tuple[Tensor, Tensor]:
        """All rows' lists int64 [R, K] and how much of each counts, 0 in idle rows."""
        widest = max(choice.read.slots.shape[1] for choice in choices)
        listed = torch.zeros(len(lens), widest, dtype=torch.int64, device=lens.device)
        counts = torch.zeros(len(lens), dtype=torch.int64, device=lens.device)
        for choice in choices:
            group, slots = choice.group, choice.read.slots
            if len(group.number) == len(lens):
                listed = slots
            else:
                put(listed[:, : slots.shape[1]], group.rows, slots)
            count: Tensor | int = slots.shape[1]
            if choice.read.refresh is not False and fires is not False:
                anew = 0 if choice.read.full else choice.renewed
                mine = torch.full(group.number.shape, slots.shape[1], device=lens.device)
                count = anew if fires is True else mine.masked_fill(take(fires, group.rows), anew)
            put(counts, group.rows, count)
        return listed.clamp(min=0), counts.where(lens > 0, 0)  # an idle row lists what it does not have
