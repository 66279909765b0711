"""RULER's variable tracking: VAR A = 12345, VAR B = VAR A, ... hidden in noise; name all that hold the value.

One chain of four hops and a worked example of its own noise before it, as published. The score is the share of the
names that the answer holds (RULER's recall).
"""

from __future__ import annotations

import functools
import itertools
import random
import string
from dataclasses import dataclass

from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.scorers import recall
from kvfoot.evaluate.tasks import haystack
from kvfoot.evaluate.tasks.measure import largest, tokens_of

HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
EXAMPLE_TOKENS = 500
"""Of the worked example, at most; shorter where the whole is shorter than four times that."""


def chain(rng: random.Random, hops: int, letters: int, value: str) -> tuple[list[str], list[str]]:
    """Different names, and the lines that pass the value on."""
    names: list[str] = []
    while len(names) <= hops:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    return names, [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in itertools.pairwise(names))]


def frame(value: str, names: int) -> tuple[str, str]:
    """Question and answer prefix."""
    question = f"Question: Find all variables that are assigned the value {value} in the text above."
    prefix = (
        "Answer: According to the chain(s) of variable assignment in the text above, "
        f"{names} variables are assigned the value {value}, they are:"
    )
    return question, prefix


@dataclass(frozen=True)
class VariableTracking:
    """hops: copies after the first assignment; with names of 5 letters (3 in the example)."""

    name: str = "vt"
    hops: int = 4
    chat: bool | None = None
    category: str = "recall"
    metric: str = "recall"

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        example = self._example(rng, min(EXAMPLE_TOKENS, length // 4), count)
        value = str(rng.randint(10**4, 10**5 - 1))
        names, lines = chain(rng, self.hops, 5, value)
        question, prefix = frame(value, len(names))
        units = tuple(f" {name}" for name in names)
        room = count(["".join(units)]) + 16
        hay = haystack.noise(lines, haystack.spread(rng, len(lines), index))

        def document(size: int) -> str:
            return f"{example}\n\n{HEAD}{hay(size)}"

        size = largest(self.name, lambda size: tokens_of(count, document(size), question, prefix) + room, length)
        score = functools.partial(recall, references=names)
        return Example(document(size), question, ("".join(units),), units, prefix, score, room)

    def _example(self, rng: random.Random, length: int, count: Count) -> str:
        value = str(rng.randint(10**4, 10**5 - 1))
        names, lines = chain(rng, min(10, self.hops), 3, value)
        question, prefix = frame(value, len(names))
        hay = haystack.noise(lines, haystack.spread(rng, len(lines), 0))

        def text(size: int) -> str:
            return f"{HEAD}{hay(size)}\n{question} {prefix} {' '.join(names)}"

        least = count([text(0)])
        return text(largest(self.name, lambda size: count([text(size)]), max(least, length)))
