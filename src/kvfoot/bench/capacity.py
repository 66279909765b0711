"""Tokens per second with as many sequences as a pool takes: what a footprint is worth where memory is the limit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kvfoot.bench import memory
from kvfoot.bench.decode import row
from kvfoot.bench.measure import copy_bandwidth
from kvfoot.bench.shapes import streamed_bytes
from kvfoot.bench.sides import Ours, collect
from kvfoot.bench.synthetic import SAID, shortened
from kvfoot.bench.variant import Variant, admitted, context_of, page_bytes
from kvfoot.cache.memory import free
from kvfoot.core.errors import PoolExhausted, UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Plan
from kvfoot.engine.engine import Engine

Tell = Callable[[str], None]
SHARE = 0.9
"""Of what is free after the weights, where no size is given: the rest is for activations and the step's workspace."""


@dataclass(frozen=True)
class Filling:
    """What decodes. kv_memory: bytes of the pool, or a fraction of what is free; most: no more sequences than that."""

    variants: tuple[Variant, ...]
    context: int
    steps: int = 16
    rounds: int = 3
    warm: int = 16
    kv_memory: int | float = SHARE
    most: int | None = None

    @property
    def decoded(self) -> int:
        return self.warm + 1 + self.rounds * (self.steps + 1)

    def pool(self, device: torch.device) -> int:
        """Bytes of the pool, weights being where they are."""
        size = self.kv_memory
        return size if isinstance(size, int) else int(size * free(device))

    def batches(self, geometry: Geometry, itemsize: int, page_size: int, size: int) -> dict[str, int]:
        """Sequences of each variant that a pool of `size` bytes admits. Raises UsageError where it is none."""
        prompt, found = context_of(self.context, self.decoded, geometry), {}
        for variant in self.variants:
            plan = variant.plan(geometry, prompt)
            left = shortened(plan, geometry, prompt)
            pages = size // page_bytes(plan, geometry, itemsize, page_size)
            count = admitted(plan, left, geometry, page_size, pages, self.decoded)
            found[variant.title] = count if self.most is None else min(count, self.most)
        return found

    def settings(self) -> dict[str, Any]:
        """What a record says of it."""
        names = ("context", "steps", "rounds", "warm", "kv_memory", "most")
        admission = "prompts one after the other, each at the peak that its plan predicts beside those read before"
        return {name: getattr(self, name) for name in names} | {"entries": SAID, "admission": admission}


def capacity(engine: Engine, what: Filling, tell: Tell, bandwidth: float | None = None) -> dict[str, Any]:
    """Figures of every variant, each in a pool of its own, one after the other."""
    bandwidth = bandwidth or copy_bandwidth(engine.device)
    size = what.pool(engine.device)
    batches = what.batches(engine.geometry, engine.dtype.itemsize, engine.page_size, size)
    weights, before, rows = streamed_bytes(engine.model), engine.kv_memory, {}
    try:
        for variant in what.variants:
            rows[variant.title] = _one(engine, what, variant, batches[variant.title], size, tell, weights, bandwidth)
    finally:
        engine.kv_memory = before
    return {"copy_bytes_per_second": bandwidth, "kv_memory": size, "interleaved": False, "sides": rows}


def _one(
    engine: Engine, what: Filling, variant: Variant, batch: int, size: int, tell: Tell, weights: int, bandwidth: float
) -> dict[str, Any]:
    engine.kv_memory = size
    geometry, prompt = engine.geometry, context_of(what.context, what.decoded, engine.geometry)
    left = shortened(variant.plan(geometry, prompt), geometry, prompt)
    batch = next(n for n in range(batch, -1, -1) if n == 0 or _admits(engine, left, n, what.decoded))
    if batch == 0:
        raise UsageError(f"a pool of {memory.gib(size)} admits no sequence of {variant.title}: raise --kv-memory")
    tell(f"{variant.title}: {batch} sequences")
    side = Ours(engine, variant, prompt, batch, what.decoded, True)
    side.decode(what.warm, measured=False)
    for _ in range(what.rounds):
        side.decode(what.steps)
    found = row(side, batch, weights, bandwidth) | {"sequences": batch}
    side.close()
    tell(f"{variant.title}: {found['tokens_per_second']:.0f} tokens/s")
    return found


def _admits(engine: Engine, left: Plan, count: int, later: int) -> bool:
    """Whether the engine opens its pool for so many: it may want pages of its own."""
    try:
        engine.runner([left] * count, later)
    except PoolExhausted:
        return False
    finally:
        collect()
    return True
