"""Law 5 and 6 under any order of operations: the cache against plain lists of entries, the pool against a set."""

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from kvfoot.cache.kv import KVCache
from kvfoot.cache.pool import Pool, runs
from kvfoot.cache.rows import Rows
from kvfoot.core.budget import Cut
from kvfoot.core.errors import PoolExhausted
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import POSITION, Keep, Plane

D, WIDTH = 3, 2
GEOMETRY = Geometry(layers=2, kv_heads=3, group=1, head_dim=D, positions=1 << 16)
MASS = Plane("mass", WIDTH)

Entry = tuple[int, tuple[float, ...]]
"""A stored entry: its position and its mass; key and value are functions of a serial number, here the position."""


def key(row: int, position: int) -> Tensor:
    return torch.tensor([row, position, 0.5 * position])


class Model:
    """One sequence as plain lists: rows[layer][head] is a list of [position, mass] in slot order."""

    def __init__(self) -> None:
        self.rows: list[list[list[Entry]]] = [[[] for _ in range(3)] for _ in range(2)]
        self.seen = 0

    def shortest(self) -> int:
        return min(len(row) for layer in self.rows for row in layer)

    def copy(self) -> "Model":
        twin = Model()
        twin.rows = [[list(row) for row in layer] for layer in self.rows]
        twin.seen = self.seen
        return twin


class CacheMachine(RuleBasedStateMachine):
    @initialize(page_size=st.sampled_from([1, 2, 5, 16]), pages=st.sampled_from([30, 90, 900]), seed=st.integers(0, 99))
    def start(self, page_size: int, pages: int, seed: int) -> None:
        self.pool = Pool(D, torch.float32, page_size=page_size, planes=(POSITION, MASS), pages=pages, poison=True)
        for plane in (self.pool.k, self.pool.v, self.pool.planes["mass"]):
            plane.fill_(float("nan"))
        self.cache = KVCache(self.pool, GEOMETRY)
        self.live: list[tuple[Rows, Model]] = [(self.cache.open(), Model())]
        self.random = np.random.default_rng(seed)

    def pick(self, index: int) -> tuple[Rows, Model]:
        return self.live[index % len(self.live)]

    # A pass: what engine/step.py does for a block of rows of equal length.

    def _pass(self, rows: Rows, model: Model, n: int, cut: Cut | None, choose: str, rewrite: bool) -> None:
        """What is forecast suffices: past `require`, no allocation fails."""
        try:
            self.pool.require(self.cache.forecast(rows, n, cut))
        except PoolExhausted:
            return
        for layer in range(2):
            self._layer(rows, model, layer, n, cut, choose, rewrite)
        model.seen += n

    def _layer(self, rows: Rows, model: Model, layer: int, n: int, cut: Cut | None, choose: str, rewrite: bool) -> None:
        start = model.seen
        for heads, b in self.cache.blocks(rows, layer, cut):
            keys, values = self._gathered(rows, layer, heads, b, n)
            for r, head in enumerate(heads):
                for i in range(n):
                    keys[r, b + i] = key(3 * layer + head, start + i)
                    values[r, b + i] = -keys[r, b + i]
            mass = torch.tensor(self.random.integers(0, 100, (len(heads), b + n, WIDTH)), dtype=torch.float32)
            before = [model.rows[layer][h] for h in heads]
            if not rewrite:
                for r, row in enumerate(before):
                    for i, (_, old) in enumerate(row):
                        mass[r, i] = torch.tensor(old)
            positions = torch.tensor(
                [[p for p, _ in row] + list(range(start, start + n)) for row in before], dtype=torch.long
            ).reshape(len(heads), b + n)
            scope = b if cut is not None and cut.scope == "new" else 0
            size = b + n - scope
            limit = size if cut is None else min(size, int(cut.counts[layer, heads[0]]))
            keep = None
            if limit < size:
                order = [sorted(self.random.choice(size, limit, replace=False).tolist()) for _ in heads]
                kept = torch.tensor(order, dtype=torch.long).reshape(len(heads), limit)
                if choose == "lost" and size - limit == 1:
                    lost = [next(j for j in range(size) if j not in set(o)) for o in order]
                    keep = Keep(lost=torch.tensor(lost))
                else:
                    keep = Keep(kept=kept)
            new = {"position": positions[:, b:, None], "mass": mass[:, b:]}
            old = {"position": positions[:, :b, None], "mass": mass[:, :b]}
            was_ordered = rows.ordered[layer]
            self.cache.commit(rows, layer, heads, keys, values, new, old, cut, keep)
            for r, head in enumerate(heads):
                whole = [(int(p), tuple(m.tolist())) for p, m in zip(positions[r], mass[r], strict=True)]
                if keep is None:
                    result = whole
                elif scope:
                    result = whole[:b] + [whole[b + j] for j in order[r]]
                elif keep.lost is not None and n == 1:
                    slot = int(keep.lost[r])
                    result = whole[:b]
                    if slot < b:
                        result[slot] = whole[b]
                else:
                    result = [whole[j] for j in order[r]]
                    if not was_ordered:
                        result.sort()
                model.rows[layer][head] = result

    def _gathered(self, rows: Rows, layer: int, heads: tuple[int, ...], b: int, n: int) -> tuple[Tensor, Tensor]:
        if b == 0:
            shape = (len(heads), n, D)
            return torch.zeros(shape), torch.zeros(shape)
        keys, values = self.cache.history(rows, layer, heads, room=n)
        return keys, values

    @rule()
    def open(self) -> None:
        if len(self.live) < 4:
            self.live.append((self.cache.open(), Model()))

    @precondition(lambda self: self.live)
    @rule(index=st.integers(0, 3), n=st.integers(1, 9), rewrite=st.booleans())
    def append(self, index: int, n: int, rewrite: bool) -> None:
        rows, model = self.pick(index)
        self._pass(rows, model, n, None, "kept", rewrite)

    @precondition(lambda self: self.live)
    @rule(
        index=st.integers(0, 3),
        n=st.integers(1, 9),
        scope=st.sampled_from(["new", "all"]),
        counts=st.lists(st.integers(1, 12), min_size=3, max_size=3),
        equal=st.booleans(),
        choose=st.sampled_from(["kept", "lost"]),
        rewrite=st.booleans(),
    )
    def cut(
        self,
        index: int,
        n: int,
        scope: str,
        counts: list[int],
        equal: bool,
        choose: str,
        rewrite: bool,
    ) -> None:
        rows, model = self.pick(index)
        table = np.tile(np.array([counts[0]] * 3 if equal else counts, np.int32), (2, 1))
        self._pass(rows, model, n, Cut(scope, table), choose, rewrite)  # type: ignore[arg-type]

    @precondition(lambda self: any(m.shortest() for _, m in self.live))
    @rule(index=st.integers(0, 3), rewrite=st.booleans())
    def decode_at_the_limit(self, index: int, rewrite: bool) -> None:
        """One token more and one fewer: the loser's slot is overwritten."""
        full = [(r, m) for r, m in self.live if m.shortest()]
        rows, model = full[index % len(full)]
        table = np.array([[len(row) for row in layer] for layer in model.rows], np.int32)
        self._pass(rows, model, 1, Cut("all", table), "lost", rewrite)

    @precondition(lambda self: 0 < len(self.live) < 4)
    @rule(index=st.integers(0, 3))
    def fork(self, index: int) -> None:
        rows, model = self.pick(index)
        owned = self.pool.owned
        self.live.append((self.cache.fork(rows), model.copy()))
        assert self.pool.owned == owned

    @precondition(lambda self: self.live)
    @rule(index=st.integers(0, 3))
    def release(self, index: int) -> None:
        rows, _ = self.live.pop(index % len(self.live))
        self.cache.release(rows)

    @precondition(lambda self: self.live)
    @rule()
    def settle(self) -> None:
        self.cache.settle()

    @invariant()
    def the_cache_holds_what_the_lists_say(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check()
        for rows, model in self.live:
            for layer in range(2):
                for head in range(3):
                    expected = model.rows[layer][head]
                    assert rows.lens[layer, head] == len(expected)
                    if not expected:
                        continue
                    positions = self.cache.positions(rows, layer, (head,))[0].tolist()
                    assert positions == [p for p, _ in expected]
                    keys, values = self.cache.history(rows, layer, (head,))
                    wanted = torch.stack([key(3 * layer + head, p) for p, _ in expected])
                    assert torch.equal(keys[0], wanted)
                    assert torch.equal(values[0], -wanted)
                    mass = self.cache.plane(rows, layer, (head,), "mass")[0]
                    assert torch.equal(mass, torch.tensor([m for _, m in expected]))

    @invariant()
    def free_pages_are_poisoned(self) -> None:
        if not hasattr(self, "pool"):
            return
        for extent in self.pool._free:
            assert torch.isnan(self.pool.k[extent.start : extent.stop]).all()
            assert torch.isnan(self.pool.planes["mass"][extent.start : extent.stop]).all()

    def teardown(self) -> None:
        if hasattr(self, "live"):
            for rows, _ in self.live:
                self.cache.release(rows)
            self.cache.check()
            assert self.pool.owned == 0
            assert len(self.pool._free) == 1, "all free pages are one run again"


class PoolMachine(RuleBasedStateMachine):
    """Extents against a plain set of free pages."""

    @initialize(pages=st.integers(1, 60))
    def start(self, pages: int) -> None:
        self.pool = Pool(2, torch.float32, page_size=2, pages=pages, poison=True)
        self.pool.k.fill_(float("nan"))
        self.owners: list[np.ndarray] = []
        self.peak = 0

    @rule(count=st.integers(0, 12))
    def allocate(self, count: int) -> None:
        free = sorted(set(range(self.pool.pages)) - {int(i) for ids in self.owners for i in ids})
        if count > len(free):
            before = [(e.start, e.stop) for e in self.pool._free]
            with pytest.raises(PoolExhausted, match=f"needs {count} more pages and {len(free)} of {self.pool.pages}"):
                self.pool.allocate(count)
            assert [(e.start, e.stop) for e in self.pool._free] == before
            return
        ids = self.pool.allocate(count)
        assert len(set(ids.tolist())) == count
        assert set(ids.tolist()) <= set(free)
        fits = [r for r in runs(np.array(free)) if r[1] - r[0] >= count]
        if count and fits:
            assert ids.tolist() == list(range(fits[0][0], fits[0][0] + count)), "not the first run that holds all"
        for page in ids:
            self.pool.k[page] = float(page)
        self.owners.append(ids)
        self.peak = max(self.peak, len({int(i) for o in self.owners for i in o}))

    @precondition(lambda self: self.owners)
    @rule(index=st.integers(0, 20))
    def share(self, index: int) -> None:
        ids = self.owners[index % len(self.owners)]
        self.pool.share(ids)
        self.owners.append(ids.copy())

    @precondition(lambda self: self.owners)
    @rule(index=st.integers(0, 20), part=st.floats(0, 1), seed=st.integers(0, 9))
    def release(self, index: int, part: float, seed: int) -> None:
        """Some of an owner's pages, in any order."""
        ids = np.random.default_rng(seed).permutation(self.owners.pop(index % len(self.owners)))
        cut = round(part * len(ids))
        self.pool.release(ids[:cut])
        self.owners.append(ids[cut:])

    @invariant()
    def law_5(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check(self.owners)
        owned = {int(i) for ids in self.owners for i in ids}
        assert self.pool.owned == len(owned)
        assert self.pool.free == self.pool.pages - len(owned)
        assert self.pool.peak == self.peak
        assert self.pool.held_bytes == len(owned) * 2 * 2 * 2 * 4
        for page in range(self.pool.pages):
            if page in owned:
                assert (self.pool.k[page] == page).all(), "an owned page was touched"
            else:
                assert torch.isnan(self.pool.k[page]).all(), "a free page is not poisoned"


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
