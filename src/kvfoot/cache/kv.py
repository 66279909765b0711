"""The ragged paged cache: rows that grow, shrink, fork and are read, each at its own length (decision D2)."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from kvfoot.cache.entries import Entries
from kvfoot.cache.memory import send, words
from kvfoot.cache.rows import Rows
from kvfoot.core.budget import Cut
from kvfoot.core.hooks import POSITION, Band, Keep

Values = Mapping[str, Tensor]
"""Plane values of entries: name -> [R, entries, width]."""


class KVCache(Entries):
    """All sequences' rows over one pool. R rows are always KV heads of one layer of one sequence, equal in length.

    Entries are addressed by slot, 0 .. length - 1; keys are stored after RoPE at absolute positions and never moved in
    position (decision D3).
    """

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

    # Writing: `values` holds every plane's values, for the entries that the method's docstring names.

    def extend(self, rows: Rows, layer: int, k: Tensor, v: Tensor, values: Values) -> None:
        """Store one more entry in every row of a layer, whatever their lengths: k, v [kv_heads, 1, head_dim]."""
        size, lens = self.pool.page_size, rows.lens[layer]
        for head in np.flatnonzero((lens % size == 0) | rows.forked).tolist():
            self._grow(rows, layer, (head,), int(lens[head]), int(lens[head]) + 1)
        flat = [int(rows.pages[layer][h][n // size]) * size + n % size for h, n in enumerate(lens.tolist())]
        self._write(send(np.array(flat), self.pool.device), *self._encoded(k, v), values)
        rows.lens[layer] += 1

    def rewrite(self, rows: Rows, layer: int, heads: tuple[int, ...], k: Tensor, v: Tensor) -> None:
        """Put other keys and values in the place of the last n entries: k, v [R, n, head_dim]."""
        b, n = int(rows.lens[layer, heads[0]]), k.shape[1]
        self._own(rows, layer, heads, range((b - n) // self.pool.page_size, self._count(b)))
        self._write(self._slots(rows, layer, heads, b - n, b), *self._encoded(k, v), {})

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
            slots = self._slots(rows, layer, heads, turn, turn + 1)
            self._write(slots, *self._encoded(new_k, new_v), {})
            rows.turn[layer] = (turn + 1) % b
        else:
            stay = min(b, max(limit - n, 0))
            k, v = self._stored(rows, layer, heads, b, k, v)
            old = [x[:, :b].roll(-turn, 1)[:, b - stay :] for x in (k, v)]
            self._drop(rows, layer, heads)
            rows.turn[layer] = 0
            last = slice(b + max(n - limit, 0), b + n)
            k, v = (torch.cat([x, y[:, last]], 1) for x, y in zip(old, (k, v), strict=True))
            self._append(rows, layer, heads, k, v, {})

    def append(self, rows: Rows, layer: int, heads: tuple[int, ...], k: Tensor, v: Tensor, values: Values) -> None:
        """Store n more entries per row: k, v [R, n, head_dim], values of those n."""
        self._append(rows, layer, heads, *self._encoded(k, v), values)

    def _append(self, rows: Rows, layer: int, heads: tuple[int, ...], k: Tensor, v: Tensor, values: Values) -> None:
        """The same, k and v as they are stored: [R, n, width]."""
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
        for plane, value in self._pairs(*self._encoded(k, v), values):
            target, here = self._flat(plane), flat.to(plane.device)
            one = value[:, 0].to(plane.device, plane.dtype)
            target.index_copy_(0, here, torch.where(stay.to(plane.device), target[here], one))
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
        k, v = self._stored(rows, layer, heads, int(rows.lens[layer, heads[0]]), k, v)
        k, v, values = pick(k), pick(v), {name: pick(value) for name, value in values.items()}
        self._drop(rows, layer, heads)
        self._append(rows, layer, heads, k, v, values)

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
        own: bool = False,
    ) -> None:
        """Store a pass's n entries and drop what `keep` does not name.

        k, v: [R, b + n, head_dim], the b stored entries in slot order and then the new ones; with `own` these
        alone, [R, n, head_dim], which will do where `keep` chooses among no others. new: every plane's values of the n
        new entries; old: planes to rewrite for the b stored ones, with their positions where `keep` chooses among all.
        keep None: everything stays; its indices count from b where the cut's scope is "new".
        """
        b = int(rows.lens[layer, heads[0]])
        first = 0 if own else b
        new_k, new_v, n = k[:, first:], v[:, first:], k.shape[1] - first
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

    def _pairs(self, k: Tensor, v: Tensor, values: Values) -> list[tuple[Tensor, Tensor]]:
        return [(self.pool.k, k), (self.pool.v, v), *((self.pool.planes[n], x) for n, x in values.items())]

    def _write(self, slots: Tensor, k: Tensor, v: Tensor, values: Values) -> None:
        """k, v: as they are stored. Values on the host wait for the device once (decision D8)."""
        for plane, value in self._pairs(k, v, values):
            flat = value.reshape(slots.shape[0], -1).to(plane.device, plane.dtype)
            target, flat = words(self._flat(plane), flat)
            target.index_copy_(0, slots.to(plane.device), flat)


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
