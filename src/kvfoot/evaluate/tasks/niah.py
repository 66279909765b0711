"""RULER's eight needle tasks: "One of the special magic numbers for X is: Y." in noise, in books, or among needles.

Wording, answer prefixes and kinds of keys and values are RULER's. Differences: a single needle's depths are spread
evenly instead of drawn, and what a whole line of haystack would exceed is filled with noise sentences, so that a length
is met within 2 %. A single answer is right if the model's answer begins with it; RULER looks for it in 128 tokens.
"""

from __future__ import annotations

import functools
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.scorers import recall
from kvfoot.evaluate.tasks import haystack
from kvfoot.evaluate.tasks.measure import largest, tokens_of
from kvfoot.evaluate.tasks.texts import read_texts, words

Kind = Literal["numbers", "words", "uuids"]


def draw(rng: random.Random, kind: Kind) -> str:
    """A number of seven digits, adjective-noun, or a UUID."""
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    if kind == "words":
        return f"{rng.choice(words('adjective'))}-{rng.choice(words('noun'))}"
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def distinct(rng: random.Random, kind: Kind, count: int, taken: set[str]) -> list[str]:
    """New values, none of which is in `taken`; adds them there."""
    found: list[str] = []
    while len(found) < count:
        value = draw(rng, kind)
        if value not in taken:
            taken.add(value)
            found.append(value)
    return found


@dataclass(frozen=True)
class Niah:
    """keys: different ones in the text; values: of each key; queries: keys that are asked for."""

    name: str
    hay: Literal["noise", "books", "needles"]
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_kind: Kind = "words"
    value_kind: Kind = "numbers"
    folder: Path | None = None
    chat: bool | None = None
    category: str = "recall"

    @property
    def metric(self) -> str:
        return "exact" if self.queries * self.values == 1 else "recall"

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        taken: set[str] = set()
        keys = distinct(rng, self.key_kind, self.keys, taken)
        values = {key: distinct(rng, self.value_kind, self.values, taken) for key in keys}
        asked = rng.sample(keys, self.queries)
        needles = [self._needle(key, value) for key in keys for value in values[key]]
        rng.shuffle(needles)
        places = haystack.spread(rng, len(needles), index)
        order = {needle: i for i, needle in enumerate(needles)}
        # the keys in the question's order, the values of a key in the text's
        pairs = [(key, value) for key in asked for value in values[key]]
        pairs.sort(key=lambda pair: (asked.index(pair[0]), order[self._needle(*pair)]))
        answers = [value for _, value in pairs]
        several = len(answers) > 1
        units = tuple(("," if i else "") + f" {value}" for i, value in enumerate(answers))
        room = count(["".join(units)]) + (32 if several else 4)
        head, question, prefix = self._frame(asked)

        def tokens(text: str) -> int:
            return tokens_of(count, head + text, question, prefix) + room

        hay = self._hay(rng, taken, needles, places, length, tokens)
        text = hay(largest(self.name, lambda size: tokens(hay(size)), length))
        alone = len(needles) == 1 or self.hay == "needles"
        return Example(
            head + text,
            question,
            ("".join(units),),
            units if several else (),
            prefix,
            functools.partial(recall, references=answers) if several else None,
            room,
            {"depth": text.index(needles[0]) / len(text)} if alone else {},
        )

    def _hay(
        self, rng: random.Random, taken: set[str], needles: list[str], places: list[float], length: int,
        tokens: Callable[[str], int],
    ) -> haystack.Haystack:  # fmt: skip
        if self.hay == "noise":
            return haystack.noise(needles, places)
        if self.hay == "books":
            texts = read_texts(self.folder, self.name)
            probe = texts.passage(rng, 4000)
            characters = 4000 * length / (tokens(probe) - tokens(""))
            return haystack.books(texts, rng, int(1.3 * characters) + 2000, needles, places)
        lines: list[str] = []

        def among(size: int) -> haystack.Haystack:
            while len(lines) < size:
                key, value = (distinct(rng, kind, 1, taken)[0] for kind in (self.key_kind, self.value_kind))
                lines.append(self._needle(key, value))
            return haystack.distractors(lines[:size], 0.5, needles, places)

        return among(largest(self.name, lambda size: tokens(among(size)(0)), length))

    def _needle(self, key: str, value: str) -> str:
        return f"One of the special magic {self.value_kind} for {key} is: {value}."

    def _frame(self, asked: list[str]) -> tuple[str, str, str]:
        """What stands before the haystack, the question, and the beginning of the answer."""
        names = ", ".join(asked[:-1]) + ", and " + asked[-1] if len(asked) > 1 else asked[0]
        if self.metric == "exact":
            kind = self.value_kind[:-1]
            some, hidden, are, these = f"A special magic {kind}", "is", "is", f"the special magic {kind}"
        else:
            kind = self.value_kind
            some, hidden, are, these = f"Some special magic {kind}", "are", "are", f"the special magic {kind}"
        every = "" if self.metric == "exact" else "all "
        head = (
            f"{some} {hidden} hidden within the following text. Make sure to memorize it. I will quiz you about the "
            f"{kind} afterwards.\n"
        )
        question = f"What {are} {every}{these} for {names} mentioned in the provided text?"
        return head, question, f"The{these[3:]} for {names} mentioned in the provided text {are}"
