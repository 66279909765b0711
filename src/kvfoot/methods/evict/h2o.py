from dataclasses import dataclass
from typing import ClassVar

from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method, Needs, Plane, require
from kvfoot.core.ranking import Join, Mass
from kvfoot.core.registry import register

MASS = "mass"


@register(
    "h2o", paper="2306.14048", category="evict", stores="heavy hitters + the most recent entries", reads="all stored"
)
@dataclass(frozen=True)
class H2O(Method):
    """Attention mass accumulated over every query so far, not divided by their number; half of the budget is recent.

    recent: share of the budget for the most recent tokens (the release: heavy and recent in equal parts). Each query
    head accumulates for itself where `group` is max, so that the maximum is taken over sums.
    """

    recent: float = 0.5
    group: Join = "mean"
    needs: ClassVar[Needs] = Needs.COLUMN_SCORES
    total: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0 <= self.recent <= 1, f"h2o: recent={self.recent} is a share of the budget, in [0, 1]")

    def planes(self, geometry: Geometry) -> tuple[Plane, ...]:
        return (Plane(MASS, geometry.group if self.group == "max" else 1),)

    @property
    def ranking(self) -> Mass:
        return Mass(MASS, self.group, self.recent)
