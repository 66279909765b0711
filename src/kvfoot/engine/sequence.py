"""One prompt on its way through the engine: its tokens, its rows, its plan, its trace."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvfoot.cache.rows import Rows
from kvfoot.cache.trace import Trace
from kvfoot.core.budget import Cut, PromptPass, held
from kvfoot.core.errors import BrokenPromise
from kvfoot.core.hooks import Method, Plan
from kvfoot.engine.sampler import Stream


@dataclass
class Sequence:
    """tokens: prompt, then what was generated. promised: int64 [layers, kv_heads], what the plan lets it hold.

    later: the cut after every pass that follows the prompt. rows_promised: each row is, not only a layer's sum.
    reading: a reader's state by layer and KV heads. begun: tokens seen when it was made, None before. past: what the
    last tokens have attended to, by the same (engine/correct.py). recent: the last tokens that were read, where the
    reader reads them once more.
    """

    tokens: list[int]
    prompt: int
    rows: Rows
    method: Method
    plan: Plan
    trace: Trace
    generator: Stream
    promised: np.ndarray
    held: np.ndarray | None = None
    generated: list[int] = field(default_factory=list)
    done: bool = False
    later: Cut | None = None
    rows_promised: bool = True
    reading: dict[tuple[int, tuple[int, ...]], Any] = field(default_factory=dict)
    begun: int | None = None
    past: dict[tuple[int, tuple[int, ...]], Any] = field(default_factory=dict)
    recent: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.later, self.rows_promised = self.plan.later, not self.plan.ragged

    @property
    def steps(self) -> int:
        """Which step after the prompt the next token is, 1 the first."""
        return self.rows.seen - (self.begun or 0) + 1

    @property
    def passes(self) -> tuple[PromptPass, ...]:
        return self.plan.passes

    def anew(self) -> None:
        """Forget what a reader has chosen: after the tokens that come now it chooses again."""
        self.reading, self.begun, self.past = {}, None, {}

    def promise(self, new: int, cut: Cut | None) -> None:
        """The plan's arithmetic for a pass of `new` tokens: independent of what the cache does."""
        self.promised = held(cut, self.promised, new, self.trace.geometry)

    def verify(self) -> None:
        """Decision D10: the pool holds what the method promised, row by row (a ragged prompt: layer by layer)."""
        if not self.rows_promised:
            sums, promised = self.rows.lens.sum(1), self.promised.sum(1)
            if not np.array_equal(sums, promised):
                layer = int(np.argmax(sums != promised))
                raise BrokenPromise(
                    f"{self.method.name}: the rows of layer {layer} hold {sums[layer]} entries together, the plan says "
                    f"{promised[layer]}"
                )
            return
        if not np.array_equal(self.rows.lens, self.promised):
            layer, head = np.argwhere(self.rows.lens != self.promised)[0]
            raise BrokenPromise(
                f"{self.method.name}: layer {layer}, KV head {head} holds {self.rows.lens[layer, head]} entries, "
                f"the plan says {self.promised[layer, head]}"
            )

    def freeze(self) -> None:
        """The prompt ends: rows that were promised by layer are promised one by one from here on (decision D7)."""
        if not self.rows_promised:
            self.promised, self.rows_promised = self.rows.lens.copy(), True
            self.later = self.later and self.later.freeze(self.rows.lens)
