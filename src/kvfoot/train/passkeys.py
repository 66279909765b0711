"""Passkeys in text, DuoAttention's training data: ten of them at random depths, all asked for at the end.

The wording is ours; the counts are the release's: 32 words a passkey out of the 26 of the radio alphabet, depths out of
1,000 points of [0.05, 0.95] without repetition, 50 lengths evenly spaced up to the longest.
"""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from kvfoot.core.errors import UsageError
from kvfoot.train.packing import LEAST, Packed, Row

ALPHABET = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo", "lima",
    "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey", "xray",
    "yankee", "zulu",
)  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
NEEDLE = "\n\nKeep this in mind: the {nth} passkey is {words}.\n\n"
QUESTION = "\nWhat is the {nth} passkey? The {nth} passkey is"
INTRODUCTION = "Somewhere in the following text there are passkeys. Remember them: they are asked for at the end.\n\n"
POINTS, LENGTHS = 1000, 50
Supervise = Literal["questions", "passkeys"]


@dataclass(frozen=True)
class PasskeyShape:
    """supervise: as released every token after the text (questions and passkeys), or the passkeys alone as the paper
    says. shortest: tokens of the shortest row."""

    keys: int = 10
    words: int = 32
    shortest: int = 1000
    supervise: Supervise = "questions"

    def __post_init__(self) -> None:
        if not 1 <= self.keys <= len(ORDINALS) or self.words < 1:
            raise UsageError(f"{self.keys} passkeys of {self.words} words: give 1 to {len(ORDINALS)} keys of 1 or more")


class Documents(ABC):
    """Rows of up to about `length` tokens, each one document: text from files, needles in it, questions after it.

    A document is a function of its number and of where the text has got to.
    """

    kind: ClassVar[str]

    def __init__(self, text: Packed, seed: int):
        self.text, self.seed, self.number = text, seed, 0

    def take(self, count: int) -> list[Row]:
        return [self._row() for _ in range(count)]

    def state(self) -> dict[str, Any]:
        return {"number": self.number, "text": self.text.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.number = state["number"]
        self.text.restore(state["text"])

    @abstractmethod
    def make(self, rng: random.Random, number: int) -> Row: ...

    def _row(self) -> Row:
        number, self.number = self.number, self.number + 1
        return self.make(random.Random(f"{self.kind}/{self.seed}/{number}"), number)


class Passkeys(Documents):
    """Passkeys of random words, asked for in order."""

    kind = "passkeys"

    def __init__(self, text: Packed, shape: PasskeyShape, seed: int = 0):
        super().__init__(text, seed)
        self.shape = shape
        needed = sum(map(len, [*self._parts(self._keys(0))[0], *self._parts(self._keys(0))[1]])) + LEAST
        if text.length < needed:
            raise UsageError(
                f"--length {text.length}: {shape.keys} passkeys of {shape.words} words with their questions take "
                f"{needed} tokens: give more, or fewer or shorter passkeys"
            )

    def _keys(self, number: int) -> list[str]:
        rng = random.Random(f"passkeys/{self.seed}/{number}/keys")
        return [" ".join(rng.choices(ALPHABET, k=self.shape.words)) for _ in range(self.shape.keys)]

    def _parts(self, keys: list[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Needles; and the end: question, passkey, question, passkey ..."""
        encode, named = self.text.encode, list(zip(ORDINALS, keys, strict=False))
        needles = [encode(NEEDLE.format(nth=nth, words=words)) for nth, words in named]
        tail = [part for nth, words in named for part in (encode(QUESTION.format(nth=nth)), encode(f" {words}."))]
        return needles, tail

    def make(self, rng: random.Random, number: int) -> Row:
        needles, tail = self._parts(self._keys(number))
        head = [*self.text.begin, *self.text.encode(INTRODUCTION)]
        counted = [i % 2 == 1 or self.shape.supervise == "questions" for i in range(len(tail))]
        return woven(self.text, rng, head, needles, list(zip(tail, counted, strict=True)), self.shape.shortest)


def woven(
    text: Packed, rng: random.Random, head: list[int], needles: list[list[int]], tail: list[tuple[list[int], bool]],
    shortest: int,
) -> Row:  # fmt: skip
    """One document: `head`, text with the needles in order at random depths, and `tail`, whose marked parts count."""
    shortest = min(shortest, text.length)
    length = shortest + (text.length - shortest) * rng.randrange(LENGTHS) // (LENGTHS - 1)
    taken = len(head) + sum(map(len, needles)) + sum(len(part) for part, _ in tail)
    room = max(LEAST, length - taken)
    words = text.words(room)
    points = sorted(rng.sample(range(POINTS), len(needles)))
    tokens, last = head, 0
    for point, needle in zip(points, needles, strict=True):
        place = round(room * (0.05 + 0.9 * point / (POINTS - 1)))
        tokens, last = tokens + words[last:place] + needle, place
    tokens = tokens + words[last:]
    counted = [False] * len(tokens)
    for part, counts in tail:
        tokens = tokens + part
        counted += [counts] * len(part)
    return Row(torch.tensor(tokens), ((0, len(tokens)),), torch.tensor(counted))
