from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Plan, require
from kvfoot.core.reading import Query, Read, Reader
from kvfoot.core.registry import register


@dataclass(frozen=True)
class Selected:
    """slots: int64 [R, k], the same in all rows of a sequence, ascending where torch has chosen them; q: fp32 [B, w],
    all heads of the query that chose them, of each of B sequences.
    """

    slots: Tensor
    q: Tensor


@register(
    "tokenselect",
    paper="2411.02886",
    category="read",
    stores="every entry",
    reads="sinks + what the heads of a layer vote for + window, chosen by a scan of the keys",
)
@dataclass(frozen=True)
class TokenSelect(Reader):
    """All heads of a layer vote softly for one set of entries: the sum of their softmaxes over what is contested.

    Of the size, `sink` first and `window` last entries are always read, the rest is voted for. A query whose cosine
    with the last one that chose, over all heads, is at least `similarity` reuses its choice (the Selection Cache; the
    first query always chooses). Original positions, where the release renumbers; scaled logits; query head h votes with
    KV head h // group. Published sizes: 128 + 2048 + 512.
    """

    sink: int = 128
    window: int = 512
    similarity: float = 0.9
    least: ClassVar[int] = 128 + 2048 + 512
    aligned: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sink >= 0, f"tokenselect: sink={self.sink} is negative")
        require(self.window >= 1, f"tokenselect: window={self.window}: at least the newest entry")
        limits = -1 <= self.similarity <= 1.1
        require(limits, f"tokenselect: similarity={self.similarity} is a cosine, in [-1, 1]; 1.1 never reuses a choice")

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        plan = super().prepare(geometry, prompt, chunk, budget)
        if plan.reads is not None and plan.reads <= self.sink + self.window:
            raise UsageError(
                f"tokenselect: {plan.reads} entries leave nothing to vote for beside sink + window = "
                f"{self.sink + self.window}: raise the budget or set a smaller window"
            )
        return plan

    def start(self, query: Query) -> Selected:
        return self.refresh(None, query)[0]

    def read(self, state: Selected, query: Query) -> tuple[Selected, Read]:
        if query.n <= query.size:
            return state, Read(None)
        if state.slots.shape[1] < query.size - self.sink - self.window:
            return state, Read(None, refresh=True)  # chosen when everything was read
        alike = F.cosine_similarity(flat(query), state.q)
        return state, Read(self._around(state.slots, query), alike < self.similarity)

    def phase(self, step: int, n: int, size: int) -> str | None:
        return None if n <= size + 1 else "quiet"  # at size + 1 it chooses for the first time

    def refresh(self, state: Selected | None, query: Query) -> tuple[Selected, Tensor]:
        count = query.size - self.sink - self.window
        chosen = query.vote(self.sink, self.window, count)
        if chosen is None:
            chosen = self._voted(query, count)
        slots = chosen.repeat_interleave(len(query.q) // query.sequences, 0)
        return Selected(slots, flat(query)), self._around(slots, query)

    def _voted(self, query: Query, count: int) -> Tensor:
        p, first, there = query.contested(self.sink, self.window)
        votes = p.unflatten(0, (query.sequences, -1)).sum((1, 2))
        if there is not None:
            votes = votes.masked_fill(~there.unflatten(0, (query.sequences, -1))[:, 0], -1)
        return votes.topk(min(count, votes.shape[1]), sorted=False).indices.sort().values + first

    def _around(self, slots: Tensor, query: Query) -> Tensor:
        rows, device = len(slots), slots.device
        first = torch.arange(self.sink, device=device).expand(rows, -1)
        last = query.newest + torch.arange(1 - self.window, 1, device=device)
        return torch.cat([first, slots, last], 1)


def flat(query: Query) -> Tensor:
    return query.q.float().reshape(query.sequences, -1)
