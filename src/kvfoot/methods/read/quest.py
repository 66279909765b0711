from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvfoot.core.hooks import require
from kvfoot.core.reading import Query, Read, Reader
from kvfoot.core.registry import register
from kvfoot.methods.tools import Join


@dataclass(frozen=True)
class Bounds:
    """low, high: [R, P, D], the least and greatest value of every channel of the keys of each page, full or not."""

    low: Tensor
    high: Tensor


@register(
    "quest",
    paper="2406.10774",
    category="read",
    stores="every entry + bounds of pages",
    reads="the pages whose keys could match best",
)
@dataclass(frozen=True)
class Quest(Reader):
    """Every step reads the pages with the greatest upper bound of q k; the bound takes each channel's best key.

    page: entries per page, 16 as published; pages read: the size / page, at least 3, the newest among them. skip: first
    layers that read everything. The bounds of a KV head's query heads are joined by `group` (the paper's models have
    one each).
    """

    page: int = 16
    skip: int = 2
    group: Join = "max"
    batched: ClassVar[bool] = True
    grown: ClassVar[tuple[str, ...]] = ("low", "high")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.page >= 1, f"{self.name}: page={self.page}: at least 1 entry")
        require(self.skip >= 0, f"{self.name}: skip={self.skip} is negative")

    def start(self, query: Query) -> Bounds | None:
        if query.layer < self.skip:
            return None
        return page_bounds(query.keys(), self.page)

    def read(self, state: Bounds | None, query: Query) -> tuple[Bounds | None, Read]:
        if state is None:
            return None, Read(None)
        state = Bounds(*query.widen(state.low, state.high, self.page))
        return state, self._choose(state, query)

    def phase(self, step: int, n: int, size: int) -> str | None:
        return "quiet" if self._count(size) < self.places(n) else None

    def places(self, n: Any) -> Any:
        return -(-n // self.page)

    def _count(self, size: int) -> int:
        return max(3, size // self.page)

    def _choose(self, state: Bounds, query: Query) -> Read:
        count, pages = self._count(query.size), self.places(query.n)
        if count >= pages:
            return Read(None, extra=pages)
        reach = query.reach(state.low, state.high, self.page, self.group)
        return Read(query.pages(reach.topk(count - 1, sorted=False).indices, self.page))


def page_bounds(keys: Tensor, page: int) -> Bounds:
    """Of keys [R, n, D] from a page's first entry on; the last page is as full as it is."""
    n = keys.shape[1]
    whole = n // page * page
    pages = [keys[:, :whole].unflatten(1, (-1, page))] if whole else []
    low, high = [p.amin(2) for p in pages], [p.amax(2) for p in pages]
    if whole < n:
        low.append(keys[:, whole:].amin(1, keepdim=True))
        high.append(keys[:, whole:].amax(1, keepdim=True))
    return Bounds(torch.cat(low, 1), torch.cat(high, 1))
