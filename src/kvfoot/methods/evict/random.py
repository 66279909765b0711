from dataclasses import dataclass

from torch import Tensor

from kvfoot.core.hooks import Method, Seen, require
from kvfoot.core.registry import register
from kvfoot.methods.tools import protect, uniform


@register("random", paper="-", category="evict", stores="a random subset + window", reads="all stored")
@dataclass(frozen=True)
class Random(Method):
    """A control for scored eviction: the same protection, scores drawn once per (seed, layer, KV head, position)."""

    seed: int = 0
    window: int = 64
    sink: int = 0

    def __post_init__(self) -> None:
        require(self.window >= 0 and self.sink >= 0, "random: window and sink are counts")

    def priority(self, seen: Seen) -> Tensor:
        key = (self.seed * 1_000_003 + seen.layer) * 65_537 + seen.heads[:, None]
        return protect(seen, uniform(key * 1_000_003 + seen.positions), sink=self.sink, window=self.window)
