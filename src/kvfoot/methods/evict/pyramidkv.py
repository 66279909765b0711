from dataclasses import dataclass, replace

import numpy as np

from kvfoot.core.budget import Budget, Cut
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Plan, require
from kvfoot.core.registry import register
from kvfoot.methods.evict.snapkv import SnapKV


@register(
    "pyramidkv",
    paper="2406.02069",
    category="evict",
    stores="as snapkv, more in low layers than in high ones",
    reads="all stored",
)
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV with a budget that falls linearly from the first layer to the last; `keep` and `budget` are its mean.

    beta: the last layer selects about 1/beta of the mean, 20 as published. Layers step down by whole entries as in the
    release, so the mean over layers is exceeded by less than layers/2 entries. Where fewer entries are in scope than
    twice the mean selected, every layer gets the mean: above keep = 0.5 or so this is SnapKV.
    """

    beta: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 1, f"pyramidkv: beta={self.beta} has to be at least 1 (1 is flat)")

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        plan = super().prepare(geometry, prompt, chunk, budget)
        passes = []
        for part in plan.passes:
            size = part.stop - part.start if part.cut is not None and part.cut.scope == "new" else prompt
            passes.append(replace(part, cut=self._slope(part.cut, size)))
        return replace(plan, passes=tuple(passes), later=self._slope(plan.later, prompt))

    def _slope(self, cut: Cut | None, size: int) -> Cut | None:
        """The cut's counts, equal in all layers, spread over them for `size` entries in scope."""
        if cut is None:
            return None
        count, layers = int(cut.counts[0, 0]), len(cut.counts)
        mean = count - self.protected
        if mean <= 0 or size <= count or size < 2 * mean or layers == 1:
            return cut
        high = min(2 * mean - mean // self.beta, size - self.protected)
        step = (2 * high - 2 * mean) // (layers - 1)
        each = high - np.arange(layers) * step + self.protected
        return replace(cut, counts=np.repeat(each[:, None], cut.counts.shape[1], 1).astype(np.int32))
