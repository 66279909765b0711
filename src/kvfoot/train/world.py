"""One process or several (torchrun): who am I, and sums over all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def world(device: torch.device) -> Iterator["World"]:
    """The process group that torchrun's environment describes, else one process alone."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(0, 1)
        return
    own = not dist.is_initialized()
    if own:
        cuda = device.type == "cuda"
        dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        if own:
            dist.destroy_process_group()


class World:
    """rank in [0, size)."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Rows of a step that this process computes."""
        return range(self.rank, count, self.size)

    def sum_(self, *tensors: Tensor) -> None:
        """Add up in place over all processes."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def local_device(device: str) -> str:
    """Under torchrun every process takes the GPU of its local rank."""
    if device in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device
