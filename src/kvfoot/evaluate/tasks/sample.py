"""What a task produces: drafts (texts without a length), and samples (a draft fitted to a length).

A *unit* is one scored piece of an answer: the whole answer of a lookup, or one step of a long output.
A *turn* is a question with its answer; several turns share one context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Metric = Literal["exact", "prefix"]
Category = Literal["recall", "long output", "in-context learning", "text"]
Count = Callable[[list[str]], int]


@dataclass(frozen=True)
class Turn:
    """A question and the units of its answer; `"".join(units)` is the answer, letter by letter."""

    question: str
    units: tuple[str, ...]

    @property
    def answer(self) -> str:
        return "".join(self.units)


@dataclass(frozen=True)
class Draft:
    """A document without its filler.

    head: before everything. items: scattered between sentences of filler, or one block when `scatter` is false.
    depth: one place for all items, 0 first to 1 last; None scatters them evenly at random.
    """

    head: str
    items: tuple[str, ...]
    turns: tuple[Turn, ...]
    scatter: bool = True
    depth: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A document fitted to a length. `pieces` alternate between filler and items; joined they are the context."""

    task: str
    pieces: tuple[str, ...]
    turns: tuple[Turn, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> str:
        return "".join(self.pieces)

    @property
    def question(self) -> str:
        return self.turns[0].question

    @property
    def answers(self) -> tuple[str, ...]:
        return self.turns[0].units

    @property
    def prompt(self) -> str:
        """What is put into the user's turn of the chat template."""
        return f"{self.context}\n\n{self.question}"
