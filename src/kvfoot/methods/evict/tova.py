from dataclasses import dataclass
from typing import ClassVar

from kvfoot.core.hooks import Method, Needs
from kvfoot.core.ranking import Mass
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

    @property
    def ranking(self) -> Mass:
        return Mass()
