"""Which pages belong to which rows: sequences that open, fork and go, rows that grow, pages copied before a write."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from kvfoot.cache.memory import send
from kvfoot.cache.pool import Pool
from kvfoot.cache.rows import Rows
from kvfoot.core.budget import Cut, held
from kvfoot.core.geometry import Geometry


class Paging:
    """The rows of all open sequences over one pool; nothing here looks into an entry."""

    def __init__(self, pool: Pool, geometry: Geometry):
        self.pool, self.geometry = pool, geometry
        self._open: list[Rows] = []

    def open(self) -> Rows:
        rows = Rows(self.geometry)
        self._open.append(rows)
        return rows

    def fork(self, rows: Rows) -> Rows:
        """A second sequence with the same entries: pages are shared until one side writes to them."""
        twin = self.open()
        twin.forked = rows.forked = True
        twin.lens, twin.seen, twin.ordered, twin.turn = rows.lens.copy(), rows.seen, list(rows.ordered), list(rows.turn)
        twin.pages = [[ids.copy() for ids in layer] for layer in rows.pages]
        for layer in twin.pages:
            for ids in layer:
                self.pool.share(ids)
        return twin

    def release(self, rows: Rows) -> None:
        """Give all of a sequence's pages back."""
        self._open.remove(rows)
        for layer in rows.pages:
            for ids in layer:
                self.pool.release(ids)
        rows.pages = []

    def claim(self, rows: Rows, cut: Cut | None) -> None:
        """Copy on write ahead of decode steps that `cut` follows: pages that they may write to become own ones."""
        if not rows.forked:
            return
        for layer, lens in enumerate(rows.lens):
            ring = self.geometry.window(layer) is not None
            for head, n in enumerate(lens.tolist()):
                spared = cut is None or bool(cut.spares(layer)[head])
                every = ring or not spared or len(self.pool.planes) > 1
                self._own(rows, layer, (head,), range(0 if every else n // self.pool.page_size, self._count(n)))

    def truncate(self, rows: Rows, count: int) -> None:
        """Take a sequence's last `count` tokens back: rows in position order, no window layers."""
        assert all(rows.ordered)
        assert not any(self.geometry.windows)
        rows.lens -= count
        rows.seen -= count
        for layer, lens in enumerate(rows.lens):
            for head, n in enumerate(lens.tolist()):
                ids = rows.pages[layer][head]
                self.pool.release(ids[self._count(n) :])
                rows.pages[layer][head] = ids[: self._count(n)].copy()
            rows.indices[layer].clear()

    def check(self) -> None:
        """Law 5, and that every row has exactly the pages that its length asks for."""
        self.pool.check(ids for rows in self._open for layer in rows.pages for ids in layer)
        for rows in self._open:
            for layer, lens in zip(rows.pages, rows.lens, strict=True):
                for ids, n in zip(layer, lens, strict=True):
                    assert len(ids) == self._count(int(n)), "a row has pages that its length does not need"

    def forecast(self, rows: Rows, new: int, cut: Cut | None) -> int:
        """Most pages that a pass of `new` tokens takes beyond those owned now; exact for even, unshared rows."""
        size = self.pool.page_size
        after = held(cut, rows.lens, new, self.geometry)
        if cut is not None and cut.ragged:
            growth = most_pages(after, size) - (-(-rows.lens // size)).sum(1)
        else:
            growth = -(-after // size) - -(-rows.lens // size)
        return int(np.maximum(growth, 0).sum()) + (self._copies(rows, cut) if rows.forked else 0)

    def _copies(self, rows: Rows, cut: Cut | None) -> int:
        """Shared pages that a pass may write to: any where entries or planes are rewritten, else a partial last."""
        if len(self.pool.planes) > 1 or (cut is not None and cut.scope == "all"):
            return sum(int(self.pool.shared(ids).sum()) for layer in rows.pages for ids in layer)
        partial = rows.lens % self.pool.page_size > 0
        copies = sum(int(self.pool.shared(rows.pages[i][h][-1:]).sum()) for i, h in np.argwhere(partial).tolist())
        rings = [layer for i, layer in enumerate(rows.pages) if self.geometry.window(i) is not None]
        return copies + sum(int(self.pool.shared(ids).sum()) for layer in rings for ids in layer)

    def _drop(self, rows: Rows, layer: int, heads: tuple[int, ...]) -> None:
        """Give all pages of some rows back."""
        for head in heads:
            self.pool.release(rows.pages[layer][head])
            rows.pages[layer][head] = np.empty(0, np.int64)
        rows.lens[layer, list(heads)] = 0
        rows.indices[layer].clear()

    def _count(self, entries: int) -> int:
        return -(-entries // self.pool.page_size)

    def _grow(self, rows: Rows, layer: int, heads: tuple[int, ...], old: int, new: int) -> None:
        """Pages for entries up to `new`; a shared last page that is going to be written is copied first."""
        if old % self.pool.page_size:
            self._own(rows, layer, heads, [self._count(old) - 1])
        more = self._count(new) - self._count(old)
        if more:
            fresh = self.pool.allocate(more * len(heads)).reshape(len(heads), more)
            for i, head in enumerate(heads):
                rows.pages[layer][head] = np.concatenate([rows.pages[layer][head], fresh[i]])
            rows.indices[layer].clear()

    def _own(self, rows: Rows, layer: int, heads: tuple[int, ...], which: Sequence[int]) -> None:
        """Copy on write: the row's pages `which` become its own."""
        if not rows.forked:
            return
        for head in heads:
            ids, places = rows.pages[layer][head], np.asarray(which, np.int64)
            places = places[self.pool.shared(ids[places])]
            if places.size:
                fresh = self.pool.allocate(places.size)
                self.pool.copy(ids[places], fresh)
                self.pool.release(ids[places])
                ids[places] = fresh
                rows.indices[layer].clear()

    def _index(self, rows: Rows, layer: int, heads: tuple[int, ...], entries: int) -> Tensor:
        """Page numbers int64 [R x pages] that hold `entries` of each row; past a row's own, its last repeats."""
        count = self._count(entries)
        cached = rows.indices[layer].get((heads, count))
        if cached is None:
            tables = [rows.pages[layer][h][:count] for h in heads]
            tables = [np.pad(t, (0, count - len(t)), mode="edge") if len(t) < count else t for t in tables]
            cached = send(np.concatenate(tables), self.pool.device)
            rows.indices[layer][heads, count] = cached
        return cached

    def _slots(self, rows: Rows, layer: int, heads: tuple[int, ...], start: int, stop: int) -> Tensor:
        """Flat slots in the arena of entries [start, stop) of each row, int64 [R x (stop - start)]."""
        size = self.pool.page_size
        entries = np.arange(start, stop)
        flat = [rows.pages[layer][h][entries // size] * size + entries % size for h in heads]
        return send(np.concatenate(flat), self.pool.device)


def most_pages(lens: np.ndarray, page_size: int) -> np.ndarray:
    """Pages that the rows of each layer need at most, however its sum of `lens` [layers, kv_heads] is divided."""
    return (lens.sum(1) + lens.shape[1] * (page_size - 1)) // page_size
