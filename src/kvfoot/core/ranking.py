"""Priorities that a method declares instead of computing: the engine can then find the lost entry by itself.

Each is a definition in plain torch, which launched steps and prompts use; what the engine does in a replayed step
instead (engine/oldest.py, attention/overwrite.py) has to choose the same entries (docs/decisions/0052).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kvfoot.core.hooks import Seen

Join = Literal["mean", "max"]


class Ranking(Protocol):
    """What `Method.observe` and `Method.priority` are, where a method declares one and overrides neither."""

    def observe(self, seen: "Seen") -> dict[str, Tensor]: ...

    def priority(self, seen: "Seen") -> Tensor: ...


@dataclass(frozen=True)
class Recency:
    """The oldest entry goes; positions [0, sink) never do. Which slot that is, the host knows."""

    sink: int = 0

    def observe(self, seen: "Seen") -> dict[str, Tensor]:
        return {}

    def priority(self, seen: "Seen") -> Tensor:
        p = seen.positions
        return p.float().masked_fill(p < self.sink, torch.inf)


@dataclass(frozen=True)
class Mass:
    """The entry with the least attention goes.

    plane: attention of every query so far, added up there, of each row alone: the mean over its query heads, or each of
    them for itself and then the greatest (`group`). None: the newest query's, its mean over all heads of a layer, one
    for all of a sequence's rows, which hold the same entries in the same slots.
    recent: share of what is kept that is the newest tokens, whatever attention they have.
    """

    plane: str | None = None
    group: Join = "mean"
    recent: float = 0.0

    def observe(self, seen: "Seen") -> dict[str, Tensor]:
        if self.plane is None:
            return {}
        assert seen.scores is not None
        new = seen.scores.mT if self.group == "max" else seen.scores.mean(1)[..., None]
        return {self.plane: seen.planes[self.plane] + new}

    def priority(self, seen: "Seen") -> Tensor:
        if self.plane is None:
            assert seen.scores is not None
            each = seen.scores.unflatten(0, (seen.sequences, -1)).mean((1, 2), keepdim=True)[:, :, 0]
            mass = each.expand(-1, len(seen.heads) // seen.sequences, -1).flatten(0, 1)
        else:
            mass = seen.planes[self.plane].amax(-1)
        return mass.masked_fill(seen.positions > self.fence(seen.keep, seen.last), torch.inf)

    def fence(self, keep: int | Tensor, last: int | Tensor) -> int | Tensor:
        """Positions above it are protected: the newest `recent` x keep tokens, rounded half to even."""
        if isinstance(keep, Tensor):
            return last - (keep.double() * self.recent).round().long()
        return last - round(self.recent * keep)
