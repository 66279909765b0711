"""Full rows whose oldest entry goes next: the host knows its slot, and the device moves one entry and looks for none.

Layers with a window of their own, and methods that declare Recency. A row in position order has its sinks in slots
[0, sink) and then is a ring: the entry after the one that went last is the oldest. Rows that decoding has left in
another order are looked at once, when they come.
"""

import numpy as np
import torch

from kvfoot.cache.kv import KVCache
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method, declared
from kvfoot.core.ranking import Recency
from kvfoot.engine.sequence import Sequence

Row = tuple[int, int, int]
"""(layer, place in the batch, KV head)."""


def sinks(method: Method, geometry: Geometry) -> np.ndarray:
    """Slots before the ring of a layer's rows, int64 [layers]; -1 where the device finds the entry that goes."""
    ranking = declared(method)
    own = ranking.sink if isinstance(ranking, Recency) else -1
    return np.array([own if geometry.window(layer) is None else 0 for layer in range(geometry.layers)])


class Oldest:
    """Of the rows [layers, sequences, kv_heads] of a ledger. limit: entries at which each of them is full."""

    def __init__(self, cache: KVCache, method: Method, limit: np.ndarray):
        self.cache = cache
        first = sinks(method, cache.geometry)
        self.layers = first >= 0
        self.first = np.broadcast_to(first.clip(0)[:, None, None], limit.shape)
        self.size = limit - self.first
        self.turn = np.zeros(limit.shape, np.int64)
        self.order: dict[Row, np.ndarray] = {}

    def enter(self, b: int, sequence: Sequence, full: np.ndarray) -> None:
        """A sequence takes place b. full: bool [layers, kv_heads], rows that are or will be full."""
        rows, geometry = sequence.rows, self.cache.geometry
        for layer in np.flatnonzero(self.layers).tolist():
            if geometry.window(layer) is not None:
                self.turn[layer, b] = rows.turn[layer]
            elif not rows.ordered[layer]:
                for head in np.flatnonzero(full[layer]).tolist():
                    self._look(b, sequence, layer, head)

    @torch.inference_mode()
    def _look(self, b: int, sequence: Sequence, layer: int, head: int) -> None:
        """The order of a row whose slots are in none that is known: waits for the device, before any step."""
        rows, key = sequence.rows, (layer, b, head)
        first, n = int(self.first[key]), int(rows.lens[layer, head])
        at = self.cache.positions(rows, layer, (head,))[0].cpu().numpy()
        old = np.flatnonzero(at >= first)
        order = np.concatenate([old[np.argsort(at[old])], np.arange(n, first + self.size[key])])
        turn = int(order[0]) - first if len(order) else 0
        if np.array_equal(order, first + (turn + np.arange(len(order))) % max(int(self.size[key]), 1)):
            self.turn[key] = turn  # a ring that has turned
        else:
            self.order[key], self.size[key] = order, len(order)

    def slots(self) -> np.ndarray:
        """The entry of each row that goes next, int64 [layers, sequences, kv_heads]; -1: the new one itself, where all
        others are sinks."""
        found = np.where(self.size > 0, self.first + self.turn, -1)
        for key, order in self.order.items():
            found[key] = order[self.turn[key]] if len(order) else -1
        return found

    def advance(self, stays: np.ndarray) -> None:
        """The entries that were due are gone, from rows `stays`, bool [layers, sequences, kv_heads]."""
        self.turn = np.where(stays, (self.turn + 1) % np.maximum(self.size, 1), self.turn)
