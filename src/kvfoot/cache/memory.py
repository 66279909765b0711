"""Address space for the arena: reserved once, resident only where used, given back range by range (decision 0001)."""

import ctypes
import mmap
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.core.errors import UsageError

OS_PAGE = mmap.PAGESIZE


class HostSpace:
    """Anonymous private memory: untouched ranges cost nothing, `give_back` returns ranges to the operating system."""

    def __init__(self, size: int):
        self.size = max(size, OS_PAGE)
        try:
            if sys.platform == "win32":
                self._map = mmap.mmap(-1, self.size)
            else:
                self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise UsageError(
                f"the system refuses to reserve {self.size / 2**30:.1f} GiB for the cache ({error.strerror}): "
                "give a smaller size (--kv-memory)"
            ) from None

    def tensor(self) -> Tensor:
        """uint8 [size]; keeps the mapping alive."""
        return torch.frombuffer(self._map, dtype=torch.uint8)

    def give_back(self, start: int, stop: int) -> None:
        """Drop the content of bytes [start, stop), widths inside whole operating system pages only."""
        first, last = -(-start // OS_PAGE) * OS_PAGE, stop // OS_PAGE * OS_PAGE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


class DeviceSpace:
    """A plain allocation on an accelerator, or pinned for it on the host; it goes as a whole with the pool."""

    def __init__(self, size: int, device: torch.device, *, pinned: bool = False):
        self._bytes = torch.empty(size, dtype=torch.uint8, device="cpu" if pinned else device, pin_memory=pinned)

    def tensor(self) -> Tensor:
        return self._bytes

    def give_back(self, start: int, stop: int) -> None:
        """Nothing: ranges of one allocation cannot be returned."""


def reserve(size: int, device: torch.device, *, host: bool = False) -> HostSpace | DeviceSpace:
    """host: on the host, pinned where the device is an accelerator."""
    return HostSpace(size) if device.type == "cpu" else DeviceSpace(size, device, pinned=host)


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Within, a CUDA device is the thread's current one: Triton launches there, wherever its tensors lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device. From pinned memory: from any other, the host would wait until the device is idle."""
    found = torch.from_numpy(array)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


def words(*tensors: Tensor) -> list[Tensor]:
    """The same bits in words of 8 bytes, which copies by index move one at a time; as they are where one has none."""
    ratio = [8 // x.element_size() for x in tensors]
    numbers = [(x.shape[-1], x.storage_offset(), *x.stride()[:-1]) for x in tensors]
    whole = all(i % r == 0 for r, each in zip(ratio, numbers, strict=True) for i in each)
    return [x.view(torch.int64) for x in tensors] if whole and all(x.stride(-1) == 1 for x in tensors) else [*tensors]


def trim(device: torch.device) -> None:
    """Give what the C allocator holds on to back to the system: freed temporaries of tens of MiB stay with glibc."""
    if device.type == "cpu" and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def available(device: torch.device) -> int:
    """Bytes that a pool may reserve by default: the host's memory, or what is free on the device less a tenth."""
    if device.type == "cuda":
        return int(free(device) * 0.9)
    import psutil

    return int(psutil.virtual_memory().total)


def free(device: torch.device, group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be used now: of the device, with what torch holds there unused, or of the host and its container.

    group: the control group's folder (version 2), whose limit holds where there is one.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    import psutil

    least = int(psutil.virtual_memory().available)
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return least
    # File pages that nobody uses are given up before the limit is felt.
    return least if limit == "max" else min(least, max(0, int(limit) - used + int(stat.get("inactive_file", 0))))
