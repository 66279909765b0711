from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from kvfoot.core.budget import Budget, Cut
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method, Needs, Plan, Seen, require
from kvfoot.core.registry import register
from kvfoot.methods.tools import protect


@register(
    "keynorm", paper="2406.11430", category="evict", stores="the keys of lowest norm", reads="all stored + keys once"
)
@dataclass(frozen=True)
class KeyNorm(Method):
    """Keeps the keys of lowest Euclidean norm: they attract most attention. Looks at no query.

    skip: first layers that keep everything, 2 as published; `keep` and `budget` hold for the other layers. Norms do
    not change with RoPE.
    """

    skip: int = 2
    window: int = 0
    sink: int = 0
    needs: ClassVar[Needs] = Needs.KEYS

    def __post_init__(self) -> None:
        for name in ("skip", "window", "sink"):
            value = getattr(self, name)
            require(value >= 0, f"keynorm: {name}={value} is negative")

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        plan = super().prepare(geometry, prompt, chunk, budget)
        if self.skip >= geometry.layers:
            raise UsageError(
                f"keynorm: skip={self.skip} leaves none of the model's {geometry.layers} layers to evict from"
            )
        passes = tuple(replace(part, cut=self._spare(part.cut)) for part in plan.passes)
        return replace(plan, passes=passes, later=self._spare(plan.later))

    def _spare(self, cut: Cut | None) -> Cut | None:
        """The cut without the layers that are skipped."""
        if cut is None:
            return None
        counts = cut.counts.copy()
        counts[: self.skip] = np.iinfo(counts.dtype).max
        return replace(cut, counts=counts)

    def priority(self, seen: Seen) -> Tensor:
        assert seen.keys is not None
        return protect(seen, -seen.keys.float().norm(dim=-1), sink=self.sink, window=self.window)
