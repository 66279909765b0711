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
    output stay whole. Gradients of divided weights add up over the processes, as `World.sum_` adds the others.

    Raises UsageError where the processes would not run equally many rows of a step."""
    if world.size == 1:
        return model
    if batch % world.size:
        raise UsageError(f"--shard: {batch} rows of a step do not divide among {world.size} processes: change --batch")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (world.size,))
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh)
        layer.set_gradient_divide_factor(1.0)
        layer.set_force_sum_reduction_for_comms(True)  # gloo has no other
    return model


def divided(x: Tensor) -> bool:
    """Whether a tensor is one of those that `shard` divided."""
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def whole(x: Tensor) -> Tensor:
    """A divided tensor put together in every process (all have to ask), any other as it is."""
    return x.full_tensor() if divided(x) else x  # type: ignore[attr-defined]


def divide(x: Tensor, like: Tensor) -> Tensor:
    """x as `like` is divided (all have to ask)."""
    if not divided(like) or x.shape != like.shape:
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


@torch.no_grad()
def clip(gradients: list[Tensor], limit: float, world: "World") -> Tensor:
    """Scale in place to a norm of at most `limit`, over all of them; returns the norm that they had."""
    own = [x.to_local() for x in gradients if divided(x)]  # type: ignore[attr-defined]
    rest = [x for x in gradients if not divided(x)]
    total = torch.stack([x.float().square().sum() for x in own] or [torch.zeros(())]).sum()
    world.sum_(total)
    norm = (total + sum(x.float().square().sum() for x in rest)).sqrt()
    share = (limit / (norm + 1e-6)).clamp(max=1.0)
    for x in own + rest:
        x.mul_(share)
    return norm


@torch.no_grad()
def gather(model: Any, world: "World") -> None:
    """Make divided weights whole again, all of them on the CPU, in the first process; the others are left without."""
    for module in model.modules():  # one by one: FSDP's own `to` knows divided weights only
        for name, p in module._parameters.items():
            if p is not None and divided(p):
                full = whole(p).detach().cpu()
                kept = full if world.first else full.new_empty(0)
                module._parameters[name] = torch.nn.Parameter(kept, requires_grad=False)
            elif p is not None:
                p.data = p.data.cpu()


def local_device(device: str) -> str:
    """Under torchrun every process takes the GPU of its local rank."""
    if device in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device
