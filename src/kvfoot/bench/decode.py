"""Decode steps against the roofline: weights streamed and keys and values read, over the bandwidth of a copy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvfoot.bench import memory
from kvfoot.bench.measure import copy_bandwidth, floor_ms
from kvfoot.bench.shapes import streamed_bytes
from kvfoot.bench.sides import Ours, Side, Theirs, dense_bytes
from kvfoot.bench.synthetic import SAID, shortened
from kvfoot.bench.variant import TRANSFORMERS, Variant, context_of, page_bytes
from kvfoot.core.geometry import Geometry
from kvfoot.engine.engine import Engine
from kvfoot.engine.runner import peak_pages

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Decoding:
    """What is decoded. context: tokens seen when the last step has been taken, the decoded ones included.

    warm: steps that are not measured. Then come `rounds` of `steps`, one side after the other, each with an unmeasured
    step before it. A reader that refreshes needs `warm` and `steps` of whole periods. synthetic: see
    bench/synthetic.py; else random tokens are read. transformers: it is measured too.
    """

    variants: tuple[Variant, ...]
    context: int
    batch: int = 1
    steps: int = 24
    rounds: int = 5
    warm: int = 16
    synthetic: bool = True
    transformers: bool = True

    @property
    def decoded(self) -> int:
        return self.warm + 1 + self.rounds * (self.steps + 1)

    def prompt(self, geometry: Geometry) -> int:
        """Tokens in the cache before the first step. Raises UsageError where the context has no room for them."""
        return context_of(self.context, self.decoded, geometry)

    def needs(self, geometry: Geometry, itemsize: int, page_size: int) -> dict[str, int]:
        """Bytes by side, beside the weights. Raises UsageError for what a method refuses."""
        prompt, found = self.prompt(geometry), {}
        for variant in self.variants:
            plan = variant.plan(geometry, prompt)
            plan = shortened(plan, geometry, prompt) if self.synthetic else plan
            pages = self.batch * peak_pages(plan, geometry, page_size, self.decoded)
            found[variant.title] = pages * page_bytes(plan, geometry, itemsize, page_size)
        if self.transformers:
            dense = self.batch * dense_bytes(geometry, itemsize, self.context)
            found[TRANSFORMERS] = dense + (geometry.group + 1) * dense // geometry.layers  # a layer is copied, repeated
        return found

    def settings(self) -> dict[str, Any]:
        """What a record says of it."""
        names = ("context", "batch", "steps", "rounds", "warm")
        entries = SAID if self.synthetic else "kvfoot's: of a prompt of random tokens; transformers': synthetic"
        return {name: getattr(self, name) for name in names} | {"entries": entries}


def decode(engine: Engine, what: Decoding, tell: Tell, bandwidth: float | None = None) -> dict[str, Any]:
    """Figures of every side, {"sides": name -> row, ...}. Raises UsageError where a side does not fit the memory."""
    geometry, device = engine.geometry, engine.device
    bandwidth = bandwidth or copy_bandwidth(device)
    tell(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    needs = what.needs(geometry, engine.dtype.itemsize, engine.page_size)
    together = memory.fits(needs, device)
    if not together:
        for name, size in needs.items():
            memory.require({name: size}, device)
        tell("the sides do not fit side by side: measured one after the other")
    weights, rows = streamed_bytes(engine.model), {}
    for some in [list(needs)] if together else [[name] for name in needs]:
        sides = [_side(engine, what, name, tell) for name in some]
        _rounds(sides, what, tell)
        for side in sides:
            rows[side.name] = row(side, what.batch, weights, bandwidth)
            side.close()
    return {"copy_bytes_per_second": bandwidth, "interleaved": together, "sides": rows}


def row(side: Side, batch: int, weights: int, bandwidth: float) -> dict[str, Any]:
    """Measured, roofline and their ratio."""
    times, kv = side.times, side.kv_bytes()
    floor = floor_ms(weights + kv, bandwidth)
    return {
        "ms": times.ms,
        "roofline_ms": floor,
        "ratio": times.ms / floor,
        "weights_bytes": weights,
        "kv_bytes": kv,
        "tokens_per_second": 1e3 * batch / times.ms,
        "rounds_ms": times.rounds,
        "steps_ms": times.steps,
        **side.facts(),
    }


def _side(engine: Engine, what: Decoding, name: str, tell: Tell) -> Side:
    tell(f"{name}: filling the cache")
    prompt = what.prompt(engine.geometry)
    if name == TRANSFORMERS:
        return Theirs(engine, prompt, what.batch)
    variant = next(v for v in what.variants if v.title == name)
    return Ours(engine, variant, prompt, what.batch, what.decoded, what.synthetic)


def _rounds(sides: Sequence[Side], what: Decoding, tell: Tell) -> None:
    """Warm all sides, then rounds in an order that rotates."""
    for side in sides:
        side.decode(what.warm, measured=False)
    for number in range(what.rounds):
        first = number % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            side.decode(what.steps)
            tell(f"round {number + 1} of {what.rounds}: {side.name} {side.times.rounds[-1]:.3f} ms a step")
