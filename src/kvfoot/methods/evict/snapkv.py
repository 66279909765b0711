from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfoot.core.hooks import Method, Needs, Seen, require
from kvfoot.core.registry import register
from kvfoot.methods.tools import Join, Pool, join, pool, protect


@register(
    "snapkv", paper="2404.14469", category="evict", stores="the best-attended entries + window", reads="all stored"
)
@dataclass(frozen=True)
class SnapKV(Method):
    """The last `window` queries vote; votes are pooled along the sequence, joined over a KV head's query heads.

    Published defaults (class defaults of the paper's code): window 64, average pooling over 5. The paper keeps an own
    set per query head; `group` joins them after pooling (arXiv 2506.17121, appendix: mean).
    Under `budget`, the votes of a decode step are the new token's own.
    patch: the prompt's last `window` tokens follow every chunk as its observers, right behind it, and are not kept
    (arXiv 2506.17121, section 4): a chunk before the last then keeps no window of its own.
    """

    window: int = 64
    kernel: int = 5
    pool: Pool = "avg"
    group: Join = "mean"
    sink: int = 0
    patch: bool = False
    needs: ClassVar[Needs] = Needs.WINDOW_SCORES

    def __post_init__(self) -> None:
        require(self.window >= 1, f"{self.name}: window={self.window}: at least the last query has to vote")
        require(self.kernel % 2 == 1 and self.kernel > 0, f"{self.name}: kernel={self.kernel} has to be odd")
        require(self.sink >= 0, f"{self.name}: sink={self.sink} is negative")

    def priority(self, seen: Seen) -> Tensor:
        assert seen.scores is not None
        window = 0 if seen.patched else self.window
        order = seen.positions.argsort(1)
        votes = seen.scores.gather(2, order[:, None].expand_as(seen.scores))
        # The window's own columns do not smooth into their neighbours: they are cut off before pooling.
        outside = seen.positions.gather(1, order) <= seen.last - window
        smooth = join(pool(votes * outside[:, None], self.kernel, self.pool), self.group)
        return protect(seen, torch.zeros_like(smooth).scatter(1, order, smooth), sink=self.sink, window=window)
