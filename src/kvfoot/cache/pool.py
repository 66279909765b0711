"""Pages of entries, owned by rows, reference-counted, and really freed (decision D2)."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvfoot.cache.format import format_of
from kvfoot.cache.memory import available, reserve, words
from kvfoot.core.errors import PoolExhausted, UsageError
from kvfoot.core.hooks import Plane
from kvfoot.core.storage import PLAIN, Storage


@dataclass
class Extent:
    """Free pages [start, stop)."""

    start: int
    stop: int


def entry_widths(
    head_dim: int, dtype: torch.dtype, planes: Sequence[Plane] = (), storage: Storage = PLAIN
) -> dict[str, int]:
    """Bytes of an entry: of its key k, its value v (wherever they lie) and the planes' values."""
    format_ = format_of(storage, head_dim, dtype)
    one = format_.width * format_.dtype.itemsize
    return {"k": one, "v": one} | {p.name: p.dtype.itemsize * p.width for p in planes}


class Pool:
    """An arena of `pages` pages of `page_size` entries; an entry has a key, a value and the planes' values.

    k, v: [pages, page_size, width] as `format` stores them, by default in the model's dtype with width head_dim; v lies
    on the host where the storage says so. planes[name]: [pages, page_size, width]. Lowest addresses go first, in runs
    as long as there are, so that a row's pages tend to be neighbours. With `poison`, freed pages are filled with NaN.

    Bytes: entry_bytes, page_bytes, held_bytes and peak_bytes are those of the device; host_entry_bytes and so on what
    the storage has put on the host.
    """

    def __init__(
        self,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        page_size: int = 16,
        planes: Sequence[Plane] = (),
        memory: int | None = None,
        pages: int | None = None,
        poison: bool = False,
        storage: Storage = PLAIN,
    ):
        """memory: bytes of the arena on the device (default: all that it has); pages: the same as a count."""
        if page_size < 1:
            raise UsageError(f"page_size={page_size}: give at least 1 entry per page")
        self.device = torch.device(device)
        self.page_size, self.head_dim, self.dtype, self.poison = page_size, head_dim, dtype, poison
        self.storage, self.format = storage, format_of(storage, head_dim, dtype)
        away = storage.values == "host"
        widths = entry_widths(head_dim, dtype, planes, storage)
        one = widths["k"]
        self.host_entry_bytes = one if away else 0
        self.kv_bytes = one if away else 2 * one  # of an entry's key and value, on the device
        self.entry_bytes = sum(widths.values()) - self.host_entry_bytes
        self.page_bytes, self.host_page_bytes = self.entry_bytes * page_size, self.host_entry_bytes * page_size
        each = self.page_bytes + (self.host_page_bytes if self.device.type == "cpu" and memory is None else 0)
        self.pages = pages if pages is not None else (memory or available(self.device)) // each
        if self.pages < 1:
            raise UsageError(f"a pool of {memory} bytes holds no page of {self.page_bytes} bytes: raise --kv-memory")
        self._spaces = {
            n: reserve(self.pages * page_size * w, self.device, host=away and n == "v") for n, w in widths.items()
        }
        shape = (self.pages, page_size)
        raw = {n: s.tensor()[: self.pages * page_size * widths[n]] for n, s in self._spaces.items()}
        self.k, self.v = (raw[n].view(self.format.dtype).view(*shape, self.format.width) for n in "kv")
        self.planes = {p.name: raw[p.name].view(p.dtype).view(*shape, p.width) for p in planes}
        self._plane_bytes = {n: w * page_size for n, w in widths.items()}
        self._refs = np.zeros(self.pages, np.int32)
        self._free = [Extent(0, self.pages)]
        self.owned = 0
        self.peak = 0

    @property
    def free(self) -> int:
        return self.pages - self.owned

    @property
    def held_bytes(self) -> int:
        return self.owned * self.page_bytes

    @property
    def peak_bytes(self) -> int:
        return self.peak * self.page_bytes

    @property
    def host_held_bytes(self) -> int:
        return self.owned * self.host_page_bytes

    @property
    def host_peak_bytes(self) -> int:
        return self.peak * self.host_page_bytes

    def require(self, pages: int) -> None:
        """Raise PoolExhausted unless `pages` more can be allocated."""
        if pages > self.free:
            raise PoolExhausted(
                f"the cache needs {pages} more pages and {self.free} of {self.pages} are free: raise --kv-memory (now "
                f"{self.pages * self.page_bytes / 2**20:.0f} MiB), or use a smaller keep, budget, chunk or batch"
            )

    def allocate(self, count: int) -> np.ndarray:
        """`count` page numbers, int64, one reference each: the first free run that holds all, else the first runs."""
        self.require(count)
        taken: list[np.ndarray] = []
        left = count
        whole = next((i for i, e in enumerate(self._free) if e.stop - e.start >= left), None)
        while left:
            index = whole if whole is not None else 0
            extent = self._free[index]
            n = min(left, extent.stop - extent.start)
            taken.append(np.arange(extent.start, extent.start + n))
            extent.start += n
            if extent.start == extent.stop:
                del self._free[index]
            left -= n
        ids = np.concatenate(taken) if taken else np.empty(0, np.int64)
        self._refs[ids] = 1
        self.owned += count
        self.peak = max(self.peak, self.owned)
        return ids

    def share(self, ids: np.ndarray) -> None:
        """One more reference to each page."""
        self._refs[ids] += 1

    def shared(self, ids: np.ndarray) -> np.ndarray:
        """bool, for each page: whether more than one row lists it."""
        found: np.ndarray = self._refs[ids] > 1
        return found

    def release(self, ids: np.ndarray) -> None:
        """Drop one reference to each page (no page twice in one call); pages without any go back to the system."""
        self._refs[ids] -= 1
        gone = np.sort(ids[self._refs[ids] == 0])
        if not gone.size:
            return
        self.owned -= gone.size
        for start, stop in runs(gone):
            self._insert(int(start), int(stop))

    def copy(self, source: np.ndarray, target: np.ndarray) -> None:
        """Copy pages' content: copy on write."""
        old, new = (torch.from_numpy(ids).to(self.device) for ids in (source, target))
        for plane in (self.k, self.v, *self.planes.values()):
            flat = plane.view(len(plane), -1)
            flat.index_copy_(0, new, flat.index_select(0, old))

    def _insert(self, start: int, stop: int) -> None:
        index = bisect_left(self._free, start, key=lambda e: e.start)
        before = self._free[index - 1] if index else None
        after = self._free[index] if index < len(self._free) else None
        merged = Extent(start, stop)
        if after is not None and after.start == stop:
            merged.stop = after.stop
            del self._free[index]
        if before is not None and before.stop == start:
            before.stop = merged.stop
            merged.start = before.start
        else:
            self._free.insert(index, merged)
        if self.poison:
            self.spoil(start, stop)
            return
        for name, space in self._spaces.items():
            size = self._plane_bytes[name]
            # The free neighbours belong to the same range: an operating system page may hold parts of both.
            low, high = max(merged.start * size, start * size - 65536), min(merged.stop * size, stop * size + 65536)
            space.give_back(low, high)

    def spoil(self, start: int = 0, stop: int | None = None) -> None:
        """Fill pages with NaN (in few bits: with bytes of 255, which make minimum and step NaN)."""
        for plane in (self.k, self.v, *self.planes.values()):
            low = 255 if plane.dtype == torch.uint8 else None
            if plane.is_floating_point():
                plane[start:stop].fill_(float("nan"))
            else:
                plane[start:stop].fill_(torch.iinfo(plane.dtype).min if low is None else low)

    def check(self, owners: Iterable[np.ndarray]) -> None:
        """Law 5: free + owned == all, and each page has as many references as rows that list it."""
        counted = np.zeros(self.pages, np.int32)
        for ids in owners:
            np.add.at(counted, ids, 1)
        assert np.array_equal(counted, self._refs), "a page's references are not the rows that list it"
        assert int((self._refs > 0).sum()) == self.owned, "owned pages are miscounted"
        assert sum(e.stop - e.start for e in self._free) == self.free, "free pages are miscounted"
        assert all(a.stop < b.start for a, b in zip(self._free, self._free[1:], strict=False)), "free runs touch"
        assert all((self._refs[e.start : e.stop] == 0).all() for e in self._free), "a free page has an owner"


def runs(ids: np.ndarray) -> list[tuple[int, int]]:
    """Ascending page numbers as half-open runs of neighbours."""
    if not ids.size:
        return []
    breaks = np.flatnonzero(np.diff(ids) != 1)
    starts = np.concatenate([[0], breaks + 1])
    stops = np.concatenate([breaks, [ids.size - 1]])
    return [(int(ids[a]), int(ids[b]) + 1) for a, b in zip(starts, stops, strict=True)]


def gather(plane: Tensor, ids: Tensor, out: Tensor) -> Tensor:
    """Pages `ids` int64 [n] of plane [pages, page_size, width] into out [n, page_size x width], as is."""
    source, target = words(plane.view(plane.shape[0], -1), out)
    torch.index_select(source, 0, ids, out=target)
    return out
