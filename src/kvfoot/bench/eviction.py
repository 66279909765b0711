"""What eviction costs: one chunk of a prompt, read with the cut that follows it and without, over the same entries."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from kvfoot.bench.measure import seconds
from kvfoot.bench.prefill import tokens_of
from kvfoot.bench.sides import collect
from kvfoot.bench.synthetic import fill, standing
from kvfoot.bench.variant import Variant, context_of
from kvfoot.core.budget import PromptPass, held
from kvfoot.core.errors import UsageError
from kvfoot.core.hooks import Plan
from kvfoot.engine.engine import Engine
from kvfoot.engine.sampler import Sampling

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Evicting:
    """variant: a method with evict="chunk". The chunk in the middle of a prompt of `context` tokens is read."""

    variant: Variant
    context: int
    rounds: int = 5

    def settings(self) -> dict[str, Any]:
        """What a record says of it."""
        entries = "synthetic: those that earlier chunks would have left"
        return {
            "context": self.context,
            "rounds": self.rounds,
            "variant": self.variant.title,
            "chunk": self.variant.chunk,
            "entries": entries,
        }


def eviction(engine: Engine, what: Evicting, tell: Tell) -> dict[str, Any]:
    """Seconds of the chunk with and without its cut, interleaved, and the cost: their ratio less 1.

    Raises UsageError where no cut follows the chunk.
    """
    geometry = engine.geometry
    plan = what.variant.plan(geometry, context_of(what.context, 0, geometry))
    index = len(plan.passes) // 2
    middle, lens = plan.passes[index], np.zeros((geometry.layers, geometry.kv_heads), np.int64)
    if middle.cut is None or plan.ragged:
        raise UsageError(f"{what.variant.title}: no cut of known counts follows a chunk: use one with evict=chunk")
    for part in plan.passes[:index]:
        lens = held(part.cut, lens, part.stop - part.start, geometry)
    rounds: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(what.rounds + 1):  # the first round warms
        for name in list(rounds) if number % 2 else list(rounds)[::-1]:
            cut = middle if name == "with" else replace(middle, cut=None)
            taken = _read(engine, what.variant, plan, cut, lens)
            if number:
                rounds[name].append(taken)
                tell(f"round {number} of {what.rounds}: {name} eviction {taken:.3f} s")
    medians = {name: statistics.median(each) for name, each in rounds.items()}
    return {
        "chunk": [middle.start, middle.stop],
        "entries_per_row": float(lens.mean()),
        "with_ms": 1e3 * medians["with"],
        "without_ms": 1e3 * medians["without"],
        "cost": medians["with"] / medians["without"] - 1,
        "rounds_ms": {name: [1e3 * x for x in each] for name, each in rounds.items()},
    }


def _read(engine: Engine, variant: Variant, plan: Plan, part: PromptPass, lens: np.ndarray) -> float:
    """Seconds of one pass behind `lens` entries."""
    whole = replace(plan, passes=(*standing(lens, part.start), part))
    runner, own = engine.runner([whole], 1), replace(plan, passes=(part,))
    sequence = runner.open(tokens_of(engine, part.stop), variant.of(engine.geometry), own, Sampling(), 0)
    fill(runner.cache, sequence, whole)
    taken = seconds(partial(runner.prefill, sequence), engine.device)
    runner.cache.release(sequence.rows)
    del runner, sequence
    collect()
    return taken
