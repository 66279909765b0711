"""Reading the ragged paged cache: entries of rows in slot order, as they were computed, whatever they are stored as."""

import numpy as np
import torch
from torch import Tensor

from kvfoot.cache.memory import reserve, send, trim
from kvfoot.cache.paging import Paging
from kvfoot.cache.pool import Pool, gather
from kvfoot.cache.rows import Rows
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import POSITION


class Entries(Paging):
    """R rows are always KV heads of one layer of one sequence, equal in length; entries are addressed by slot."""

    def __init__(self, pool: Pool, geometry: Geometry):
        super().__init__(pool, geometry)
        self._scratch: dict[str, Tensor] = {}

    def settle(self) -> None:
        """Keep no memory but the pool's: a prompt's scratch is as large as one of its layers."""
        self._scratch.clear()
        trim(self.pool.device)

    def history(self, rows: Rows, layer: int, heads: tuple[int, ...], room: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values [R, b + room, head_dim] in slot order; the last `room` entries are for the caller to fill.

        Views of a scratch buffer, valid until the next call.
        """
        return self._entries("k", rows, layer, heads, room), self._entries("v", rows, layer, heads, room)

    def block(self, rows: Rows, layer: int, heads: tuple[int, ...], start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values [R, stop - start, head_dim] of entries that begin with a page, stored as they are computed.

        Views of the scratch of `history`, valid until the next call of either.
        """
        size, pool = self.pool.page_size, self.pool
        assert start % size == 0
        assert pool.storage.plain
        index = self._index(rows, layer, heads, int(rows.lens[layer, heads[0]])).view(len(heads), -1)
        index = index[:, start // size : self._count(stop)].reshape(-1)
        k, v = (
            self._gather(name, x, index).view(len(heads), -1, x.shape[2]) for name, x in (("k", pool.k), ("v", pool.v))
        )
        return k[:, : stop - start], v[:, : stop - start]

    def keys(self, rows: Rows, layer: int, heads: tuple[int, ...]) -> Tensor:
        """The keys alone, [R, b, head_dim], as `history` gives them."""
        return self._entries("k", rows, layer, heads, 0)

    def take(self, rows: Rows, layer: int, heads: tuple[int, ...], slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values [R, c, head_dim] in slots int64 [R, c].

        Values on the host wait for the device once.
        """
        flat = self.flat_slots(rows, layer, heads, slots)
        return self._pick(self.pool.k, flat), self._pick(self.pool.v, flat)

    def take_keys(self, rows: Rows, layer: int, heads: tuple[int, ...], slots: Tensor) -> Tensor:
        return self._pick(self.pool.k, self.flat_slots(rows, layer, heads, slots))

    def flat_slots(self, rows: Rows, layer: int, heads: tuple[int, ...], slots: Tensor) -> Tensor:
        """Slots int64 [R, c] of rows as slots of the arena."""
        table, size = self.table(rows, layer)[list(heads)], self.pool.page_size
        return table.gather(1, slots // size) * size + slots % size

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
            whole = np.stack([np.pad(t, (0, most - len(t)), constant_values=t[0]) for t in tables])
            rows.indices[layer][(), -1] = cached = send(whole, self.pool.device)
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

    # Inside

    def _entries(self, name: str, rows: Rows, layer: int, heads: tuple[int, ...], room: int) -> Tensor:
        """Keys ("k") or values ("v") [R, b + room, head_dim]."""
        b, pool = int(rows.lens[layer, heads[0]]), self.pool
        found = self._rows(name, rows, layer, heads, room)
        if pool.storage.plain:
            return found
        decoded = pool.format.decode(found[:, :b].to(pool.device))
        return torch.cat([decoded, decoded.new_empty(len(heads), room, pool.head_dim)], 1) if room else decoded

    def _pick(self, plane: Tensor, flat: Tensor) -> Tensor:
        stored = self._flat(plane).index_select(0, flat.flatten().to(plane.device)).to(self.pool.device)
        return self.pool.format.decode(stored).view(*flat.shape, -1)

    def _rows(self, name: str, rows: Rows, layer: int, heads: tuple[int, ...], room: int = 0) -> Tensor:
        """The same as they are stored, where they are: a view of the scratch, [R, b + room, width]."""
        b, plane = int(rows.lens[layer, heads[0]]), self.pool.k if name == "k" else self.pool.v
        index = self._index(rows, layer, heads, b + room).to(plane.device)
        return self._gather(name, plane, index).view(len(heads), -1, plane.shape[2])[:, : b + room]

    def _encoded(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.pool.format.encode(k), self.pool.format.encode(v)

    def _stored(
        self, rows: Rows, layer: int, heads: tuple[int, ...], b: int, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """k, v [R, b + n, head_dim] as they are stored, the first b copied from the pages: none is coded twice."""
        if self.pool.storage.bits is None:
            return k, v
        new = self._encoded(k[:, b:], v[:, b:])
        if not b:
            return new
        old = (self._rows(name, rows, layer, heads).to(k.device) for name in "kv")
        return tuple(torch.cat(pair, 1) for pair in zip(old, new, strict=True))  # type: ignore[return-value]

    def _gather(self, name: str, plane: Tensor, index: Tensor) -> Tensor:
        width = plane.shape[1] * plane.shape[2]
        need = index.shape[0] * width
        if name not in self._scratch or self._scratch[name].numel() < need:
            self._scratch.pop(name, None)
            size = (need + need // 4) * plane.element_size()
            host = plane.device.type != self.pool.device.type
            self._scratch[name] = reserve(size, self.pool.device, host=host).tensor()[:size].view(plane.dtype)
        return gather(plane, index, self._scratch[name][:need].view(index.shape[0], width))

    @staticmethod
    def _flat(plane: Tensor) -> Tensor:
        return plane.view(-1, plane.shape[2])
