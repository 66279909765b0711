from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvfoot.core.hooks import Method, Needs, Seen
from kvfoot.core.registry import register


@register("tova", paper="2401.06104", category="evict", stores="what the newest token attends to", reads="all stored")
@dataclass(frozen=True)
class TOVA(Method):
    """Every step drops the entry that the newest query attends to least, on average over all heads of the layer.

    One set per layer, shared by its KV heads. Nothing is protected, not even the newest entry.
    """

    needs: ClassVar[Needs] = Needs.WINDOW_SCORES
    total: ClassVar[bool] = True

    @property
    def observers(self) -> int:
        return 1

    def priority(self, seen: Seen) -> Tensor:
        assert seen.scores is not None
        # All rows of a layer hold the same entries in the same slots, so one mean row speaks for all of them.
        each = seen.scores.unflatten(0, (seen.sequences, -1)).mean((1, 2), keepdim=True)[:, :, 0]
        return each.expand(-1, len(seen.heads) // seen.sequences, -1).flatten(0, 1)
