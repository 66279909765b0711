"""What trainings of learned scores share: networks per layer, AdamW, and scores.safetensors, which the methods read."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kvfoot.core.geometry import Geometry
from kvfoot.core.learned import Learned, Weights
from kvfoot.models.layout import geometry_of
from kvfoot.train.passes import frozen
from kvfoot.train.state import load_optimizer, optimizer_tensors
from kvfoot.train.world import World

FILE = "scores.safetensors"


class OfScores:
    """The part of a trainer that is about its networks: `layers[i]` by name, fp32, the model's weights frozen."""

    name: str
    windows = ": their entries are no method's to score"
    model: Any
    world: World
    layers: list[dict[str, nn.Parameter]]
    optimizer: torch.optim.Optimizer
    reached: dict[str, Any]
    """Options that the method takes from the file."""

    def begin(self, model: Any, world: World, layers: list[Weights], **how: Any) -> Geometry:
        """how: of AdamW."""
        self.model, self.world, self.reached = model, world, {}
        self.layers = [{name: nn.Parameter(x.to(model.device)) for name, x in layer.items()} for layer in layers]
        self.optimizer = torch.optim.AdamW(self.parameters, foreach=False, **how)
        return geometry_of(model)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for layer in self.layers for _, p in sorted(layer.items())]

    def update(self, rate: float, *numbers: Tensor) -> None:
        """One step of AdamW with the gradients of all processes, in which `numbers` are added up as well."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        self.world.sum_(*numbers, *(p.grad for p in self.parameters if p.grad is not None))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    @contextmanager
    def running(self, checkpointing: bool) -> Iterator[None]:
        with frozen(self.model, checkpointing=checkpointing):
            yield

    def learned(self, record: dict[str, Any]) -> Learned:
        """The networks as they are, with model and record."""
        geometry = geometry_of(self.model)
        shape = (geometry.layers, geometry.kv_heads, geometry.group, geometry.head_dim)
        layers = tuple({name: p.detach().cpu() for name, p in layer.items()} for layer in self.layers)
        training = {name: x for name, x in record.items() if name != "model"}
        return Learned(self.name, layers, shape, self.reached, record["model"], training)

    def write(self, out: Path, record: dict[str, Any]) -> None:
        self.learned(record).save(out / FILE)

    def finish(self, out: Path, record: dict[str, Any]) -> None:
        """The last checkpoint is the result."""

    def tensors(self) -> dict[str, Tensor]:
        named = {f"weight.{i}.{name}": p for i, layer in enumerate(self.layers) for name, p in layer.items()}
        return {name: p.detach() for name, p in named.items()} | optimizer_tensors(self.optimizer)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        for i, layer in enumerate(self.layers):
            for name, p in layer.items():
                p.copy_(tensors[f"weight.{i}.{name}"])
        load_optimizer(self.optimizer, tensors)


def initial(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """torch's rule for linear layers: uniform within 1 / sqrt(inputs), biases (of `x`, `x_bias`) too; norms 1."""
    found = {}
    for name, shape in sorted(shapes.items()):
        if name == "norm":
            found[name] = torch.ones(shape)
            continue
        inputs = shapes[name.removesuffix("_bias")][-1]
        found[name] = (2 * torch.rand(shape, generator=generator) - 1) / inputs**0.5
    return found


def trapezoid(step: int, steps: int, warm: float, fall: float) -> float:
    """Of the peak rate: up over the first `warm` of the steps, down to 0 over the last `fall` of them."""
    up, down = ceil(warm * steps), ceil(fall * steps)
    rising = (step + 1) / up if step < up else 1.0
    falling = (steps - step) / down if steps - step < down else 1.0
    return min(rising, falling)
