"""One process or several (torchrun): who am I, and sums over all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kvfoot.core.errors import UsageError


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


def shard(model: Any, world: "World", batch: int) -> Any:
    """The model with every layer's weights divided among the processes (FSDP2) and gathered when it runs; embedding and
    output stay whole. Raises UsageError where the processes would not run equally many rows of a step."""
    if world.size == 1:
        return model
    if batch % world.size:
        raise UsageError(f"--shard: {batch} rows of a step do not divide among {world.size} processes: change --batch")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (world.size,))
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    return model


def local_device(device: str) -> str:
    """Under torchrun every process takes the GPU of its local rank."""
    if device in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device
