"""What WG-KV and Locret share: a score per entry and KV head, given once when the entry is written."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvfoot.core.budget import Budget
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method, Needs, Plan, Plane, Projections, Seen, require
from kvfoot.core.learned import Learned, Weights
from kvfoot.core.registry import read_option
from kvfoot.methods.tools import uniform

SCORE = "score"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Scored(Method):
    """file: scores.safetensors of a training (kvfoot train); of another model it is refused.

    seed, instead of a file: random weights, a control. digest: of the weights; a record has it, and with it given no
    other weights are taken.
    """

    file: str = ""
    seed: int | None = None
    digest: str = ""
    needs: ClassVar[Needs] = Needs.PROJECTIONS

    def __post_init__(self) -> None:
        require(not (self.file and self.seed is not None), f"{self.name}: file and seed exclude each other")

    @cached_property
    def learned(self) -> Learned | None:
        """The file. Raises UsageError where it cannot be read or is not the one that was meant."""
        if not self.file:
            return None
        found = Learned.load(self.file)
        require(
            self.digest in ("", found.digest),
            f"{self.name}: file {self.file} has digest {found.digest}, not {self.digest}: it has been trained again",
        )
        return found

    def trained(self, name: str, usual: int) -> int:
        """An option that the file knows best: as given, as trained, or `usual`."""
        given = getattr(self, name)
        if given is None and self.learned is not None:
            given = self.learned.options.get(name)
        return usual if given is None else int(read_option(self.name, name, given, int))

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        name = self.name
        require(
            bool(self.file) or self.seed is not None,
            f"{name} needs file=PATH, the scores.safetensors of a training: kvfoot train {name} --model M --data FILES "
            "--out OUT",
        )
        if self.learned is not None:
            self.learned.check(geometry, f"file {self.file}", name)
        return super().prepare(geometry, prompt, chunk, budget)

    def planes(self, geometry: Geometry) -> tuple[Plane, ...]:
        return (Plane(SCORE),)

    def observe(self, seen: Seen) -> dict[str, Tensor]:
        """New entries are scored; nobody's score changes later."""
        assert seen.fresh is not None
        weights = self._weights(seen.layer, seen.fresh)
        new = self.score(weights, seen.fresh)[seen.heads]
        return {SCORE: torch.cat([seen.planes[SCORE][:, : seen.size - seen.new], new[..., None]], 1)}

    @abstractmethod
    def score(self, weights: Weights, fresh: Projections) -> Tensor:
        """fp32 [G, n]: the higher, the longer it stays."""

    @abstractmethod
    def shapes(self, kv_heads: int, group: int, head_dim: int) -> Shapes:
        """Of a layer's weights."""

    def options(self) -> dict[str, Any]:
        given = {option.name: getattr(self, option.name) for option in fields(self)}
        return given | ({} if self.learned is None else {"digest": self.learned.digest})

    @cached_property
    def _ready(self) -> dict[int, Weights]:
        return {}

    def _weights(self, layer: int, fresh: Projections) -> Weights:
        """A layer's weights where the model is, moved there once."""
        device = fresh.k.device
        found = self._ready.get(layer)
        if found is None or next(iter(found.values())).device != device:
            if self.learned is not None:
                found = self.learned.layers[layer]
            else:
                assert self.seed is not None
                G, H, _, D = fresh.q.shape
                found = drawn(self.shapes(G, H, D), self.seed * 1009 + layer)
            self._ready[layer] = found = {name: x.to(device) for name, x in found.items()}
        return found


def drawn(shapes: Shapes, seed: int) -> Weights:
    """Random weights, the same everywhere: norms of 1, all else uniform, of variance 1 / (inputs of a sum)."""
    found = {}
    for at, (name, shape) in enumerate(sorted(shapes.items())):
        if name == "norm":
            found[name] = torch.ones(shape)
            continue
        size = torch.Size(shape).numel()
        draw = 2 * uniform((seed * 31 + at) * 1_000_003 + torch.arange(size)) - 1
        found[name] = draw.view(shape) * (3 / shape[-1]) ** 0.5
    return found
