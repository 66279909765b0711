from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfoot.core.hooks import require
from kvfoot.core.reading import Query, Read, Reader
from kvfoot.core.registry import register
from kvfoot.methods.tools import Join, join


@register(
    "tidaldecode",
    paper="2410.05076",
    category="read",
    stores="every entry",
    reads="everything in four layers, what they chose in the others",
)
@dataclass(frozen=True)
class TidalDecode(Reader):
    """Two layers choose, every step, by full attention; all layers above read what the last of them chose.

    skip: first layers that read everything; layer `skip` chooses, and `again` chooses anew (2 and 13 in the release for
    Llama-3-8B). Choice: the greatest logits per KV head, its query heads joined by `group`, and the newest entry.
    """

    skip: int = 2
    again: int = 13
    group: Join = "max"
    aligned: ClassVar[bool] = True
    lasting: ClassVar[bool] = False
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.skip >= 0, f"tidaldecode: skip={self.skip} is negative")
        require(self.again > self.skip, f"tidaldecode: again={self.again} has to be above layer skip={self.skip}")

    def start(self, query: Query) -> Tensor | None:
        return None

    def read(self, state: Tensor | None, query: Query) -> tuple[Tensor | None, Read]:
        if query.layer < self.skip or query.n <= query.size:
            return None, Read(None)
        if query.layer in (self.skip, self.again):
            return None, Read(None, refresh=True, full=True)
        return query.below, Read(query.below)

    def phase(self, step: int, n: int, size: int) -> str | None:
        return None if n <= size else "quiet"

    def refresh(self, state: Tensor | None, query: Query) -> tuple[Tensor, Tensor]:
        logits = join(query.logits(), self.group)
        logits = logits.scatter(1, query.newest, torch.inf)
        slots = logits.topk(query.size, sorted=False).indices
        return slots, slots
