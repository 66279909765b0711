from dataclasses import dataclass
from typing import ClassVar

from kvfoot.core.hooks import Method
from kvfoot.core.registry import register


@register("full", paper="-", category="baseline", stores="every entry", reads="every entry")
@dataclass(frozen=True)
class Full(Method):
    """Full attention: the baseline of every ratio."""

    budgeted: ClassVar[bool] = False
