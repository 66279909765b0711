from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from kvfoot.core.budget import Budget, Cut
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Plan, Seen, require
from kvfoot.core.registry import register
from kvfoot.methods.evict.snapkv import SnapKV
from kvfoot.methods.tools import Pool, share


@register(
    "adakv",
    paper="2407.11550",
    category="evict",
    stores="as snapkv, more in heads that spread their attention",
    reads="all stored",
)
@dataclass(frozen=True)
class AdaKV(SnapKV):
    """SnapKV whose layer budget is divided among the KV heads by one ranking over all of them; rows are ragged.

    A head gets (1 - alpha) x its entries among the layer's best + alpha x the mean budget; alpha = 1 is SnapKV.
    `keep` and `budget` are the mean over heads. A head's budget is fixed where the prompt ends.
    Published defaults: window 32, max-pooling over 7, alpha 0.2.
    """

    window: int = 32
    kernel: int = 7
    pool: Pool = "max"
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, f"adakv: alpha={self.alpha} is the share that every head gets, in [0, 1]")

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        plan = super().prepare(geometry, prompt, chunk, budget)
        passes = tuple(replace(part, cut=_ragged(part.cut)) for part in plan.passes)
        return replace(plan, passes=passes, later=_ragged(plan.later))

    def allocate(self, blocks: Sequence[Seen]) -> list[int]:
        priorities, heads = [self.priority(seen) for seen in blocks], [seen.heads for seen in blocks]
        return share(priorities, heads, blocks[0].keep, Fraction(str(self.alpha)))


def _ragged(cut: Cut | None) -> Cut | None:
    return None if cut is None else replace(cut, ragged=True)
