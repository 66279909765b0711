from dataclasses import dataclass, replace
from typing import ClassVar

from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method
from kvfoot.core.registry import register
from kvfoot.methods.heads.heads import Heads
from kvfoot.methods.heads.shipped import trained_for


@dataclass(frozen=True)
class Trained(Heads):
    """Heads whose file comes with the package, where one was trained for the model."""

    usual: ClassVar[float] = 0.7

    def fitted(self, geometry: Geometry) -> Method:
        if self.file or self.roles:
            return self
        sparsity = self.usual if self.sparsity is None else self.sparsity
        file = trained_for(geometry.identity, self.name, sparsity)
        if file is None:
            raise UsageError(
                f"{self.name}: no heads file for this model comes with kvfoot: train one (kvfoot train {self.name} "
                "--model M --data FILES --out OUT) and give --set file=OUT/heads.json"
            )
        return replace(self, file=file, sparsity=sparsity)


@register(
    "prulong",
    paper="2506.17121",
    category="heads",
    stores="as heads, roles trained by PruLong",
    reads="all stored",
)
@dataclass(frozen=True)
class PruLongHeads(Trained):
    """Heads as PruLong trained them, for models whose file comes with kvfoot; options as of heads.

    sparsity: 0.7 by default; of several files the one trained nearest to it is taken and rounded to it.
    """


@register(
    "duo",
    paper="2410.10819",
    category="heads",
    stores="as heads, roles trained by DuoAttention",
    reads="all stored",
)
@dataclass(frozen=True)
class DuoHeads(Trained):
    """Heads as DuoAttention trained them, for models whose file comes with kvfoot; options as of heads.

    sparsity: 0.5 by default, the published share for models with grouped queries.
    """

    usual: ClassVar[float] = 0.5
