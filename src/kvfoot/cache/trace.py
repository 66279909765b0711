"""The footprint as folds over what the cache really held, pass by pass (decision D6; arXiv 2506.17121, section 3).

Integers until the last division. Per pass and row: n committed tokens, u uncommitted ones (patches), b entries stored
before, s positions seen before. A query i of the pass is charged the b stored entries and the i + 1 of its own pass.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kvfoot.core.geometry import Geometry
from kvfoot.core.records import Footprint


def triangle(n: int) -> int:
    return n * (n + 1) // 2


@dataclass
class Pass:
    """One forward pass of one sequence. before, scan: int64 [layers, kv_heads]; scan: pairs of a keys-only read.

    loaded: the same, pairs of a query and an entry that attention read, None where it read all that is stored.
    refreshed: [layers, kv_heads], a decode step of a reader: 1 where it chose anew, NaN in rows that it does not read.
    side: bytes on the device that a reader holds beside the cache while the pass runs. counts: pairs to be added to
    `loaded`, (layer, KV heads, int64 [R]), that only the device knows yet.
    """

    n: int
    seen: int
    before: np.ndarray
    uncommitted: int = 0
    scan: np.ndarray | None = None
    loaded: np.ndarray | None = None
    refreshed: np.ndarray | None = None
    side: int = 0
    counts: list[tuple[int, tuple[int, ...], Tensor]] = field(default_factory=list)

    def settle(self) -> None:
        """Fetch `counts` from the device: once a pass, when its layers are through."""
        if not self.counts:
            return
        assert self.loaded is not None
        found = torch.cat([count for _, _, count in self.counts]).tolist()
        for layer, heads, count in self.counts:
            self.loaded[layer, list(heads)] += found[: len(count)]
            del found[: len(count)]
        self.counts = []

    def pairs(self) -> int:
        """Pairs of a query and an entry that is stored while the query is processed, over all rows."""
        b, rows, u = int(self.before.sum()), self.before.size, self.uncommitted
        return rows * triangle(self.n) + self.n * b + rows * triangle(u) + u * (b + rows * self.n)


@dataclass
class Trace:
    """All passes of one sequence. entry_bytes: bytes stored per entry on the device, planes included; dense_bytes: of a
    key and a value in the model's dtype; host_bytes: stored per entry on the host."""

    geometry: Geometry
    entry_bytes: int
    dense_bytes: int
    passes: list[Pass] = field(default_factory=list)
    host_bytes: int = 0

    def dense(self) -> int:
        """Pairs that full attention stores and reads: sum over passes and rows of n(n+1)/2 + n min(s, W - 1)."""
        total = 0
        for layer in range(self.geometry.layers):
            window = self.geometry.window(layer)
            for p in self.passes:
                back = p.seen if window is None else min(p.seen, window - 1)
                total += self.geometry.kv_heads * (triangle(p.n) + p.n * back)
        return total

    def kv(self) -> int:
        """Pairs of a query and an entry that is stored while the query is processed."""
        return sum(p.pairs() for p in self.passes)

    def read(self) -> float:
        """Pairs loaded; a scan of keys alone counts half."""
        scans = sum(float(p.scan.sum()) for p in self.passes if p.scan is not None)
        return sum(p.pairs() if p.loaded is None else int(p.loaded.sum()) for p in self.passes) + scans / 2

    def side(self) -> int:
        """Bytes x queries of what a reader holds beside the cache."""
        return sum(p.side * (p.n + p.uncommitted) for p in self.passes)

    def strides(self) -> list[float]:
        """Decode steps per refresh of each layer, mean over the KV heads that are read; [] unless a reader ran.

        inf: none. NaN: a layer whose heads are all somebody else's.
        """
        steps = np.array([p.refreshed for p in self.passes if p.refreshed is not None])
        if not steps.size:
            return []
        with np.errstate(divide="ignore", invalid="ignore"):
            strides: list[float] = ((~np.isnan(steps)).sum((0, 2)) / np.nansum(steps, (0, 2))).tolist()
        return strides

    def peak(self) -> int:
        """Entries stored at once, a pass's own included: the maximum over passes of the sum over rows."""
        rows = self.geometry.rows
        return max(int(p.before.sum()) + rows * (p.n + p.uncommitted) for p in self.passes)

    def dense_peak(self) -> int:
        best = 0
        for p in self.passes:
            total = 0
            for layer in range(self.geometry.layers):
                window = self.geometry.window(layer)
                total += self.geometry.kv_heads * ((p.seen if window is None else min(p.seen, window - 1)) + p.n)
            best = max(best, total)
        return best

    def footprint(self) -> Footprint:
        if not self.passes:
            return Footprint(0.0, 0.0, 0.0, 0.0)
        kv, dense = self.kv(), self.dense()
        whole = dense * self.dense_bytes
        return Footprint(
            kv=kv / dense,
            peak=self.peak() / self.dense_peak(),
            read=self.read() / dense,
            bytes=(kv * self.entry_bytes + self.side()) / whole,
            host=kv * self.host_bytes / whole,
        )


def released(passes: list[Pass], evicted: float, extra: int) -> tuple[int, int]:
    """Pairs and peak, per row, by the formula that the paper's released script applies to chunked eviction.

    Each prompt chunk of n tokens keeps min(round((1 - evicted) n) + extra, n); decode appends. It exists to reproduce
    published tables only: the script adds the window (`extra` = 64) that the cache code counts inside the budget.
    """
    past = pairs = peak = 0
    for p in passes:
        pairs += triangle(p.n) + p.n * past
        peak = max(peak, past + p.n)
        past += min(round((1 - evicted) * p.n) + extra, p.n) if p.n > 1 else 1
    return pairs, peak
