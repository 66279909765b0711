from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from kvfoot.core.budget import Budget
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method, Plan, Plane, Seen, require
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
    Published defaults: window 32, max-pooling over 7, alpha 0.2. `adakv+keynorm` divides over another method's scores.
    """

    window: int = 32
    kernel: int = 7
    pool: Pool = "max"
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, f"adakv: alpha={self.alpha} is the share that every head gets, in [0, 1]")

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        return ragged(super().prepare(geometry, prompt, chunk, budget))

    def allocate(self, blocks: Sequence[Seen]) -> list[int]:
        return divide(self, blocks, self.alpha)

    @classmethod
    def over(cls, evictor: Method, options: Mapping[str, Any]) -> Method:
        """The same division over another method's priorities: `adakv+keynorm`."""
        return Divided(evictor=evictor, **options)


@dataclass(frozen=True, kw_only=True)
class Divided(Method):
    """What an evicting method keeps in a layer, divided among its KV heads as AdaKV does; alpha as there.

    Passes, planes and priorities are the evictor's. Raises UsageError for one whose heads differ by their own rule.
    """

    evictor: Method
    alpha: float = 0.2

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, f"adakv: alpha={self.alpha} is the share that every head gets, in [0, 1]")
        require(
            self.evictor.category == "evict" and not isinstance(self.evictor, AdaKV),
            f"adakv+{self.evictor.name}: a budget is divided over a method that evicts by scores, such as keynorm",
        )
        for name in ("paper", "category", "reads", "needs", "total", "budgeted"):
            object.__setattr__(self, name, getattr(self.evictor, name))
        object.__setattr__(self, "name", f"adakv+{self.evictor.name}")
        object.__setattr__(self, "stores", f"{self.evictor.stores}, divided among heads")

    @property
    def protected(self) -> int:
        return self.evictor.protected

    @property
    def observers(self) -> int:
        return self.evictor.observers

    def planes(self, geometry: Geometry) -> tuple[Plane, ...]:
        return self.evictor.planes(geometry)

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        return ragged(self.evictor.prepare(geometry, prompt, chunk, budget))

    def observe(self, seen: Seen) -> dict[str, Tensor]:
        return self.evictor.observe(seen)

    def priority(self, seen: Seen) -> Tensor:
        return self.evictor.priority(seen)

    def allocate(self, blocks: Sequence[Seen]) -> list[int]:
        return divide(self, blocks, self.alpha)

    def options(self) -> dict[str, Any]:
        return {"alpha": self.alpha} | {f"{self.evictor.name}.{k}": v for k, v in self.evictor.options().items()}


def ragged(plan: Plan) -> Plan:
    """The plan with the counts of a layer as a mean."""
    loose = lambda cut: None if cut is None else replace(cut, ragged=True)  # noqa: E731
    return replace(
        plan, passes=tuple(replace(part, cut=loose(part.cut)) for part in plan.passes), later=loose(plan.later)
    )


def divide(method: Method, blocks: Sequence[Seen], alpha: float) -> list[int]:
    """AdaKV's division of a layer's budget by one ranking over all its rows (section 3)."""
    priorities, heads = [method.priority(seen) for seen in blocks], [seen.heads for seen in blocks]
    return share(priorities, heads, blocks[0].keep, Fraction(str(alpha)))
