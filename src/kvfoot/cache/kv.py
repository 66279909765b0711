"""The ragged paged cache: rows that grow, shrink, fork and are read, each at its own length (decision D2)."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from kvfoot.cache.memory import reserve, trim
from kvfoot.cache.paging import Paging
from kvfoot.cache.pool import Pool, gather
from kvfoot.cache.rows import Rows
from kvfoot.core.budget import Cut
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import POSITION, Band, Keep

Values = Mapping[str, Tensor]
"""Plane values of entries: name -> [R, entries, width]."""


class KVCache(Paging):
    """All sequences' rows over one pool. R rows are always KV heads of one layer of one sequence, equal in length.

    Entries are addressed by slot, 0 .. length - 1; keys are stored after RoPE at absolute positions and never moved in
    position (decision D3).
    """

    def __init__(self, pool: Pool, geometry: Geometry):
        super().__init__(pool, geometry)
        self._scratch: dict[str, Tensor] = {}

    def blocks(
        self, rows: Rows, layer: int, cut: Cut | None = None, band: Band | None = None
    ) -> list[tuple[tuple[int, ...], int]]:
        """KV heads of a layer grouped by length, by count where a cut follows, by band: [(heads, entries stored)]."""
        lens = rows.lens[layer].tolist()
        counts = lens if cut is None else cut.counts[layer].tolist()
        banded = lens if band is None else band.rows[layer].tolist()
        keys = list(zip(lens, counts, banded, strict=True))
        if keys.count(keys[0]) == len(keys):
            return [(tuple(range(len(keys))), keys[0][0])]
        return [(tuple(h for h, k in enumerate(keys) if k == key), key[0]) for key in sorted(set(keys))]

    def settle(self) -> None:
        """Keep no memory but the pool's: a prompt's scratch is as large as one of its layers."""
        self._scratch.clear()
        trim(self.pool.device)

    # Reading

    def history(self, rows: Rows, layer: int, heads: tuple[int, ...], room: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values [R, b + room, head_dim] in slot order; the last `room` entries are for the caller to fill.

        Views of a scratch buffer, valid until the next call.
        """
        b = int(rows.lens[layer, heads[0]])
        index = self._index(rows, layer, heads, b + room)
        shape = (len(heads), -1, self.pool.head_dim)
        out = [self._gather(name, plane, index) for name, plane in (("k", self.pool.k), ("v", self.pool.v))]
        return out[0].view(shape)[:, : b + room], out[1].view(shape)[:, : b + room]

    def plane(self, rows: Rows, layer: int, heads: tuple[int, ...], name: str) -> Tensor:
        """A plane's values [R, b, width] in slot order: a copy."""
        b = int(rows.lens[layer, heads[0]])
        plane = self.pool.planes[name]
        if b == 0:
            return plane.new_empty(len(heads), 0, plane.shape[2])
        found = self._gather(name, plane, self._index(rows, layer, heads, b))
        return found.view(len(heads), -1, plane.shape[2])[:, :b].clone()

    def table(self, rows: Rows, layer: int) -> Tensor:
        """Page numbers of a layer's rows, int64 [kv_heads, P]; past a row's own, its first repeats."""
        cached = rows.indices[layer].get(((), -1))
        if cached is None:
            tables = rows.pages[layer]
            most = max(map(len, tables))
            cached = torch.from_numpy(np.stack([np.pad(t, (0, most - len(t)), constant_values=t[0]) for t in tables]))
            rows.indices[layer][(), -1] = cached = cached.to(self.pool.device)
        return cached

    def positions(self, rows: Rows, layer: int, heads: tuple[int, ...]) -> Tensor:
        """Absolute positions of the stored entries, int64 [R, b], in slot order."""
        b = int(rows.lens[layer, heads[0]])
        if self.geometry.window(layer) is not None:
            entries = torch.arange(rows.seen - b, rows.seen, device=self.pool.device).roll(rows.turn[layer])
            return entries.expand(len(heads), b)
        if POSITION.name in self.pool.planes:
            return self.plane(rows, layer, heads, POSITION.name)[..., 0].long()
        return torch.arange(b, device=self.pool.device).expand(len(heads), b)

    # Writing: `values` holds every plane's values, for the entries that the method's docstring names.

    def extend(self, rows: Rows, layer: int, k: Tensor, v: Tensor, values: Values) -> None:
        """Store one more entry in every row of a layer, whatever their lengths: k, v [kv_heads, 1, head_dim]."""
        size, lens = self.pool.page_size, rows.lens[layer]
        for head in np.flatnonzero((lens % size == 0) | rows.forked).tolist():
            self._grow(rows, layer, (head,), int(lens[head]), int(lens[head]) + 1)
        flat = [int(rows.pages[layer][h][n // size]) * size + n % size for h, n in enumerate(lens.tolist())]
        self._write(torch.tensor(flat, device=self.pool.device), k, v, values)
        rows.lens[layer] += 1

    def slide(self, rows: Rows, layer: int, k: Tensor, v: Tensor) -> None:
        """Store a pass's n entries in a window layer, whose oldest leave: k, v [kv_heads, b + n, head_dim] by slot.

        A full ring's oldest slot is written over, so that decoding moves nothing. Planes stay unwritten there.
        """
        b, heads = int(rows.lens[layer, 0]), tuple(range(rows.lens.shape[1]))
        n, window = k.shape[1] - b, self.geometry.window(layer)
        assert window is not None
        limit, turn = window - 1, rows.turn[layer]
        new_k, new_v = k[:, b:], v[:, b:]
        if b + n <= limit:
            self.append(rows, layer, heads, new_k, new_v, {})
        elif n == 1 and b == limit:
            self._own(rows, layer, heads, [turn // self.pool.page_size])
            self._write(self._slots(rows, layer, heads, turn, turn + 1), new_k, new_v, {})
            rows.turn[layer] = (turn + 1) % b
        else:
            stay = min(b, max(limit - n, 0))
            old = [x[:, :b].roll(-turn, 1)[:, b - stay :] for x in (k, v)]
            self._drop(rows, layer, heads)
            rows.turn[layer] = 0
            last = slice(max(n - limit, 0), n)
            k, v = (torch.cat([x, y[:, last]], 1) for x, y in zip(old, (new_k, new_v), strict=True))
            self.append(rows, layer, heads, k, v, {})

    def append(self, rows: Rows, layer: int, heads: tuple[int, ...], k: Tensor, v: Tensor, values: Values) -> None:
        """Store n more entries per row: k, v [R, n, head_dim], values of those n."""
        n = k.shape[1]
        b = int(rows.lens[layer, heads[0]])
        self._grow(rows, layer, heads, b, b + n)
        slots = self._slots(rows, layer, heads, b, b + n)
        self._write(slots, k, v, values)
        rows.lens[layer, list(heads)] = b + n

    def update(self, rows: Rows, layer: int, heads: tuple[int, ...], values: Values) -> None:
        """Rewrite planes of the first n stored entries: values [R, n, width]."""
        for name, value in values.items():
            if value.shape[1]:
                self._own(rows, layer, heads, range(self._count(value.shape[1])))
                slots = self._slots(rows, layer, heads, 0, value.shape[1])
                self._flat(self.pool.planes[name]).index_copy_(0, slots, value.reshape(slots.shape[0], -1))

    def overwrite(
        self, rows: Rows, layer: int, heads: tuple[int, ...], lost: Tensor, k: Tensor, v: Tensor, values: Values
    ) -> None:
        """Put one new entry in the place of slot `lost` int64 [R]; lost == b means that the new one is dropped itself.

        k, v: [R, 1, head_dim]; values: of that entry. The host never learns which slot it was.
        """
        b = int(rows.lens[layer, heads[0]])
        self._own(rows, layer, heads, range(self._count(b)))
        table = self._index(rows, layer, heads, b).view(len(heads), -1)
        size = self.pool.page_size
        slot = torch.where(lost < b, lost, 0)
        flat = table.gather(1, (slot // size)[:, None])[:, 0] * size + slot % size
        stay = (lost >= b)[:, None]
        for plane, value in self._pairs(k, v, values):
            target = self._flat(plane)
            target.index_copy_(0, flat, torch.where(stay, target[flat], value[:, 0].to(target.dtype)))
        rows.ordered[layer] = False

    def rebuild(
        self, rows: Rows, layer: int, heads: tuple[int, ...], kept: Tensor, k: Tensor, v: Tensor, values: Values
    ) -> None:
        """Survivors into fresh pages in position order, the old pages freed.

        kept: int64 [R, c] slots into [b stored entries, n new ones]; k, v: all b + n of them; values likewise.
        """
        if not rows.ordered[layer]:
            kept = kept.gather(1, values[POSITION.name][..., 0].long().gather(1, kept).argsort(1))
        pick = _picker(kept)
        k, v, values = pick(k), pick(v), {name: pick(value) for name, value in values.items()}
        self._drop(rows, layer, heads)
        self.append(rows, layer, heads, k, v, values)

    def commit(
        self,
        rows: Rows,
        layer: int,
        heads: tuple[int, ...],
        k: Tensor,
        v: Tensor,
        new: Values,
        old: Values,
        cut: Cut | None = None,
        keep: Keep | None = None,
    ) -> None:
        """Store a pass's n entries and drop what `keep` does not name.

        k, v: [R, b + n, head_dim], the b stored entries in slot order and then the new ones. new: every plane's values
        of the n new entries; old: planes to rewrite for the b stored ones, with their positions where `keep` chooses
        among all. keep None: everything stays; its indices count from b where the cut's scope is "new".
        """
        b = int(rows.lens[layer, heads[0]])
        new_k, new_v, n = k[:, b:], v[:, b:], k.shape[1] - b
        changed = {name: value for name, value in old.items() if name != POSITION.name}
        if keep is None or (cut is not None and cut.scope == "new"):
            if keep is not None:
                pick = _picker(_kept(keep, n))
                new_k, new_v, new = pick(new_k), pick(new_v), {name: pick(value) for name, value in new.items()}
            self.append(rows, layer, heads, new_k, new_v, new)
            self.update(rows, layer, heads, changed)
        elif keep.lost is not None and n == 1:
            self.overwrite(rows, layer, heads, keep.lost, new_k, new_v, new)
            for name, value in changed.items():
                where = keep.lost.clamp(max=b - 1)[:, None, None].expand(-1, 1, value.shape[2])
                stay = (keep.lost >= b)[:, None, None]
                changed[name] = value.scatter(1, where, torch.where(stay, value.gather(1, where), new[name]))
            self.update(rows, layer, heads, changed)
        else:
            values = {name: torch.cat([old[name], value], 1) for name, value in new.items()}
            self.rebuild(rows, layer, heads, _kept(keep, b + n), k, v, values)

    # Inside

    def _gather(self, name: str, plane: Tensor, index: Tensor) -> Tensor:
        width = plane.shape[1] * plane.shape[2]
        need = index.shape[0] * width
        if name not in self._scratch or self._scratch[name].numel() < need:
            self._scratch.pop(name, None)
            size = (need + need // 4) * plane.element_size()
            self._scratch[name] = reserve(size, plane.device).tensor()[:size].view(plane.dtype)
        return gather(plane, index, self._scratch[name][:need].view(index.shape[0], width))

    @staticmethod
    def _flat(plane: Tensor) -> Tensor:
        return plane.view(-1, plane.shape[2])

    def _pairs(self, k: Tensor, v: Tensor, values: Values) -> list[tuple[Tensor, Tensor]]:
        return [(self.pool.k, k), (self.pool.v, v), *((self.pool.planes[n], x) for n, x in values.items())]

    def _write(self, slots: Tensor, k: Tensor, v: Tensor, values: Values) -> None:
        for plane, value in self._pairs(k, v, values):
            self._flat(plane).index_copy_(0, slots, value.reshape(slots.shape[0], -1).to(plane.dtype))


def _picker(kept: Tensor) -> Callable[[Tensor], Tensor]:
    """Entries `kept` int64 [R, c] of any [R, entries, width]."""
    return lambda x: torch.gather(x, 1, kept[..., None].expand(-1, -1, x.shape[2]))


def _kept(keep: Keep, size: int) -> Tensor:
    """Survivors among `size` entries, int64 [R, c]."""
    if keep.kept is not None:
        return keep.kept
    assert keep.lost is not None
    every = torch.arange(size - 1, device=keep.lost.device)[None]
    return every + (every >= keep.lost[:, None])
