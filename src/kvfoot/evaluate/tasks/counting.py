"""RULER's aggregation tasks: the ten most common words of a list (cwe), the three most frequent coded words (fwe)."""

from __future__ import annotations

import functools
import math
import random
import string
from dataclasses import dataclass

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.scorers import recall
from kvfoot.evaluate.tasks.measure import largest, tokens_of
from kvfoot.evaluate.tasks.texts import all_words

LIST_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
LIST_QUESTION = "Question: What are the 10 most common words in the above list?"
LIST_PREFIX = "Answer: The top 10 words that appear most often in the list are:"
CODED_HEAD = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. "
)
CODED_QUESTION = (
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?"
)
CODED_PREFIX = "Answer: According to the coded text above, the three most frequently appeared words are:"
COMMON = 10
DOTS = "..."
ZETA = math.pi**2 / 6
"""Riemann's zeta of 2: the k-th of n words stands n / (ZETA k^2) times."""


def numbered(words: list[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


@dataclass(frozen=True)
class CommonWords:
    """Ten words 30 times and others 3 times (below 4096 tokens 6 times and once), after a worked example."""

    name: str = "cwe"
    chat: bool | None = None
    category: str = "recall"
    metric: str = "recall"

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        short = length < 4096
        pool = rng.sample(all_words(), len(all_words()))
        shown, pool = (pool[:20], pool[20:]) if short else (pool[:40], pool[40:])
        example = self._list(rng.random(), shown, *((3, 1) if short else (10, 3)))
        common = pool[:COMMON]
        order = rng.random()
        units = tuple(f" {i}. {word}" for i, word in enumerate(common, 1))
        room = count(["".join(units)]) + 16
        worked = f"{LIST_HEAD}{example}\n{LIST_QUESTION} {LIST_PREFIX} {numbered(shown[:COMMON])}"

        def document(rare: int) -> str:
            return f"{worked}\n{LIST_HEAD}{self._list(order, pool[: COMMON + rare], *((6, 1) if short else (30, 3)))}"

        rare = largest(
            self.name,
            lambda size: tokens_of(count, document(size), LIST_QUESTION, LIST_PREFIX) + room,
            length,
            len(pool) - COMMON,
        )
        if rare == len(pool) - COMMON:
            raise UsageError(f"{self.name} has words for fewer than {length} tokens: ask for a shorter context")
        score = functools.partial(recall, references=common)
        return Example(document(rare), LIST_QUESTION, ("".join(units),), units, LIST_PREFIX, score, room)

    @staticmethod
    def _list(order: float, words: list[str], often: int, seldom: int) -> str:
        entries = words[:COMMON] * often + words[COMMON:] * seldom
        random.Random(order).shuffle(entries)
        return numbered(entries)


@dataclass(frozen=True)
class FrequentWords:
    """Coded words of six letters with Zeta-distributed counts (alpha 2); the most frequent is dots, to be ignored."""

    name: str = "fwe"
    chat: bool | None = None
    category: str = "recall"
    metric: str = "recall"

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        vocabulary: dict[str, None] = {}
        while len(vocabulary) < max(8, length // 50):
            vocabulary["".join(rng.choices(string.ascii_lowercase, k=6))] = None
        words = [DOTS, *vocabulary][: len(vocabulary)]
        order = rng.random()

        def document(size: int) -> str:
            entries = [w for k, w in enumerate(words, 1) for _ in range(int(size / (ZETA * k * k)))]
            random.Random(order).shuffle(entries)
            return CODED_HEAD + " ".join(entries)

        answers = words[1:4]
        units = tuple(("," if i else "") + f" {word}" for i, word in enumerate(answers))
        room = count(["".join(units)]) + 16

        def tokens(size: int) -> int:
            return tokens_of(count, document(size), CODED_QUESTION, CODED_PREFIX) + room

        size = largest(self.name, tokens, length)
        if int(size / (ZETA * 16)) <= int(size / (ZETA * 25)):
            raise UsageError(f"{self.name}: {length} tokens are too few to tell the third word from the fourth")
        score = functools.partial(recall, references=answers)
        return Example(document(size), CODED_QUESTION, ("".join(units),), units, CODED_PREFIX, score, room)
