from dataclasses import dataclass
from typing import ClassVar

from kvfoot.core.hooks import Method, require
from kvfoot.core.ranking import Recency
from kvfoot.core.registry import register


@register(
    "streaming", paper="2309.17453", category="evict", stores="sinks + the most recent entries", reads="all stored"
)
@dataclass(frozen=True)
class Streaming(Method):
    """Sinks and a sliding window at their original positions (the published method renumbers them by cache slot).

    sink: first tokens kept, 4 as published; the rest of the budget is recent tokens.
    """

    sink: int = 4
    total: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.sink >= 0, f"streaming: sink={self.sink} is negative")

    @property
    def protected(self) -> int:
        return self.sink + 1

    @property
    def ranking(self) -> Recency:
        return Recency(self.sink)
