"""One method as it is measured: what a run's options say, and the plan that follows for a shape."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvfoot.core.budget import Budget, held
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method, Plan
from kvfoot.core.registry import method
from kvfoot.engine.runner import peak_pages

TRANSFORMERS = "transformers"
"""The name of the side that is not ours: an unmodified model with SDPA attention and DynamicCache."""


@dataclass(frozen=True)
class Variant:
    """Options as `Engine.generate` takes them; chunk: prompt tokens per pass, None for all.

    fuse: a level of models/fusion.py, to compare; None: the engine's.
    """

    method: str = "full"
    options: dict[str, Any] = field(default_factory=dict)
    keep: str | None = None
    budget: int | None = None
    evict: str = "post"
    chunk: int | None = None
    fuse: int | None = None

    @property
    def title(self) -> str:
        """'heads roles=random sparsity=0.7', 'snapkv keep=0.12 chunk'."""
        limits = {"keep": self.keep, "budget": self.budget}
        said = [f"{k}={v}" for k, v in {**limits, **self.options}.items() if v is not None]
        sized = self.keep is not None or self.budget is not None
        said += ["chunk"] if sized and self.evict == "chunk" else []
        return " ".join([self.method, *said, *([] if self.fuse is None else [f"fuse={self.fuse}"])])

    def of(self, geometry: Geometry) -> Method:
        """Raises UsageError for an unknown method, or an option that does not suit."""
        return method(self.method, self.options).fitted(geometry.unwindowed)

    def plan(self, geometry: Geometry, prompt: int) -> Plan:
        """For a prompt of `prompt` tokens. Raises UsageError where the budget does not suit."""
        budget = Budget.of(self.keep, self.budget, self.evict)
        return self.of(geometry).prepare(geometry.unwindowed, prompt, self.chunk, budget).spread(geometry)


def kept(plan: Plan, geometry: Geometry) -> np.ndarray:
    """Entries per row after the prompt, int64 [layers, kv_heads], by the plan."""
    lens = np.zeros((geometry.layers, geometry.kv_heads), np.int64)
    for part in plan.passes:
        lens = held(part.cut, lens, part.stop - part.start, geometry)
    return lens


def page_bytes(plan: Plan, geometry: Geometry, itemsize: int, page_size: int) -> int:
    """Bytes of one page, the planes included."""
    planes = sum(plane.dtype.itemsize * plane.width for plane in plan.planes)
    return page_size * (geometry.entry_bytes(itemsize) + planes)


def admitted(whole: Plan, left: Plan, geometry: Geometry, page_size: int, pages: int, later: int) -> int:
    """Sequences that a pool of `pages` takes: prompts are read one after the other, each at its predicted peak.

    whole: the plan with the prompt's real passes; left: one that ends with the same entries; later: tokens decoded.
    Raises UsageError where there is no room for one.
    """
    own = peak_pages(left, geometry, page_size, later)
    worst = max(own, peak_pages(whole, geometry, page_size, 0))
    if worst > pages:
        raise UsageError(f"one sequence needs {worst} pages at its peak, the pool has {pages}: raise --kv-memory")
    return 1 + (pages - worst) // own


def context_of(context: int, tokens: int, geometry: Geometry) -> int:
    """Prompt tokens of a context that ends with `tokens` decoded ones. Raises UsageError where they do not fit."""
    if context > geometry.positions:
        raise UsageError(f"--context {context} exceeds the shape's {geometry.positions} positions: give a smaller one")
    if context - tokens < 2:
        raise UsageError(
            f"--context {context} has no room for a prompt beside {tokens} decoded tokens (warm + 1 + rounds x "
            "(steps + 1)): raise it, or lower --steps, --rounds or --warm"
        )
    return context - tokens
