from dataclasses import dataclass

import torch
from torch import Tensor

from kvfoot.core.hooks import require
from kvfoot.core.reading import Query, Read, Reader
from kvfoot.core.registry import register
from kvfoot.methods.tools import Join, join


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
        state = self._add(state, query.key[:, None], query.n)
        return state, self._choose(state, query)

    def _choose(self, state: Bounds, query: Query) -> Read:
        count, pages = max(3, query.size // self.page), state.low.shape[1]
        if count >= pages:
            return Read(None, extra=pages)
        bounds = join(upper_bound(query.q, state), self.group)[:, :-1]
        best = bounds.topk(count - 1, sorted=False).indices.sort(1).values
        inside = torch.arange(self.page, device=best.device)
        last = torch.arange((pages - 1) * self.page, query.n, device=best.device).expand(len(best), -1)
        slots = (best[..., None] * self.page + inside).flatten(1)
        return Read(torch.cat([slots, last], 1), extra=pages)

    def _add(self, state: Bounds, key: Tensor, n: int) -> Bounds:
        """With the n-th entry's key [R, 1, D]."""
        if (n - 1) % self.page == 0:
            return Bounds(torch.cat([state.low, key], 1), torch.cat([state.high, key], 1))
        low, high = torch.minimum(state.low[:, -1:], key), torch.maximum(state.high[:, -1:], key)
        return Bounds(torch.cat([state.low[:, :-1], low], 1), torch.cat([state.high[:, :-1], high], 1))


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


def upper_bound(q: Tensor, state: Bounds) -> Tensor:
    """No key of a page has a greater q k, fp32 [R, H, P], for q [R, H, D]."""
    q = q.float()
    return q.clamp(min=0) @ state.high.float().mT + q.clamp(max=0) @ state.low.float().mT
