"""One prompt on its way through the engine: its tokens, its rows, its plan, its trace."""

from dataclasses import dataclass, field

import numpy as np
import torch

from kvfoot.cache.kv import Rows
from kvfoot.cache.trace import Trace
from kvfoot.core.budget import Cut, PromptPass
from kvfoot.core.errors import BrokenPromise
from kvfoot.core.hooks import Method, Plan


@dataclass
class Sequence:
    """tokens: prompt, then what was generated. promised: int64 [layers, kv_heads], what the plan lets it hold."""

    tokens: list[int]
    prompt: int
    rows: Rows
    method: Method
    plan: Plan
    trace: Trace
    generator: torch.Generator
    promised: np.ndarray
    held: np.ndarray | None = None
    generated: list[int] = field(default_factory=list)
    done: bool = False

    @property
    def passes(self) -> tuple[PromptPass, ...]:
        return self.plan.passes

    def promise(self, new: int, cut: Cut | None) -> None:
        """The plan's arithmetic for a pass of `new` tokens: independent of what the cache does."""
        self.promised = self.promised + new if cut is None else cut.kept(self.promised, new)

    def verify(self) -> None:
        """Decision D10: the pool holds what the method promised, row by row."""
        if not np.array_equal(self.rows.lens, self.promised):
            layer, head = np.argwhere(self.rows.lens != self.promised)[0]
            raise BrokenPromise(
                f"{self.method.name}: layer {layer}, KV head {head} holds {self.rows.lens[layer, head]} entries, "
                f"the plan says {self.promised[layer, head]}"
            )
