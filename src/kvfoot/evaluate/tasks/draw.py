"""Random entities of one side. Everything a family draws comes from here, so a seed fixes a document."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from kvfoot.evaluate.tasks import places
from kvfoot.evaluate.tasks.corpus import Corpus
from kvfoot.evaluate.tasks.sample import Count
from kvfoot.evaluate.tasks.split import word_side
from kvfoot.evaluate.tasks.wording import Wording

T = TypeVar("T")
KEY_FORMS = ("adjective-noun", "noun", "adjective noun", "the adjective noun")


class Draw:
    """Random choices over one side's corpus, phrasings and token counter.

    count: tokens of a list of texts, for the families that fill their room with records.
    """

    def __init__(self, seed: str, corpus: Corpus, wording: Wording, count: Count) -> None:
        self.rng = random.Random(seed)
        self.corpus = corpus
        self.vocabulary = corpus.vocabulary
        self.wording = wording
        self.count = count

    @property
    def training(self) -> bool:
        return self.corpus.side == "train"

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.random() * len(options))]

    def weighted(self, options: dict[T, float]) -> T:
        return self.rng.choices(list(options), list(options.values()))[0]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, least: int, most: int) -> int:
        """An integer of [least, most], both included."""
        return least + int(self.rng.random() * (most - least + 1)) if most > least else least

    def log_between(self, least: int, most: int) -> int:
        """The same, small ones more often (uniform logarithm)."""
        if most <= least:
            return least
        return min(most, int(math.exp(self.rng.uniform(math.log(least), math.log(most + 1)))))

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return self.rng.sample(items, len(items))

    def distinct(self, make: Callable[[], T], count: int) -> list[T]:
        """Up to `count` different values; fewer when the maker runs out of them."""
        found: dict[T, None] = {}
        for _ in range(20 * count + 50):
            if len(found) == count:
                break
            found[make()] = None
        return list(found)

    def number(self, least: int = 4, most: int = 9) -> str:
        digits = self.between(least, most)
        return str(self.rng.randrange(10 ** (digits - 1), 10**digits))

    def hexadecimal(self, digits: int = 8) -> str:
        return f"{self.rng.getrandbits(4 * digits):0{digits}x}"

    def uuid(self) -> str:
        text = self.hexadecimal(32)
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def _varied(self, listed: Sequence[str]) -> str:
        """One of `listed`. In training two in five are words of the books and one in five is made up, or keys are told
        from each other by a few thousand words that have been seen a million times; a few tries find a made-up one
        that no other side's hash takes."""
        kind = self.rng.random() if self.training else 1.0
        for _ in range(6 if kind < 0.2 else 0):
            made = places.syllables(self.rng).lower()
            if word_side(made) == "train":
                return made
        return self.pick(self.vocabulary.common if 0.2 <= kind < 0.6 and self.vocabulary.common else listed)

    def word(self) -> str:
        return self._varied(self.vocabulary.words)

    def noun(self) -> str:
        return self._varied(self.vocabulary.nouns)

    def adjective(self) -> str:
        return self._varied(self.vocabulary.adjectives)

    def words(self) -> list[str]:
        """All listed words in random order; in training as many again of the books among them."""
        words, common = self.vocabulary.words, self.vocabulary.common
        return self.shuffled((*words, *self.rng.sample(common, min(len(common), len(words)))) if common else words)

    def verb(self) -> str:
        return self.pick(self.vocabulary.verbs)

    def town(self) -> str:
        """A real town as often as not, where the side has any."""
        real = self.vocabulary.towns
        return self.pick(real) if real and self.chance(0.5) else places.made_up(self.rng, self.corpus.side)

    def towns(self) -> Callable[[], str]:
        """`town` for one document; half of the training documents have towns that look alike."""
        if not self.training or self.chance(0.5):
            return self.town
        make = places.alike(self.rng)
        return lambda: make(self.rng)

    def value(self, kind: str) -> str:
        makers: dict[str, Callable[[], str]] = {
            "number": self.number,
            "six digits": lambda: self.number(6, 6),
            "uuid": self.uuid,
            "hex": self.hexadecimal,
            "word": self.word,
            "words": lambda: f"{self.word()}-{self.word()}",
            "town": self.town,
        }
        return makers[kind]()

    def key(self, form: str) -> str:
        adjective, noun = self.adjective(), self.noun()
        return {
            "adjective-noun": f"{adjective}-{noun}",
            "noun": noun,
            "adjective noun": f"{adjective} {noun}",
            "the adjective noun": f"the {adjective} {noun}",
        }[form]

    def fragment(self, least: int = 1, most: int = 6) -> str:
        return self.corpus.fragment(self.rng, least, most)

    def mean_tokens(self, make: Callable[[], str], trials: int = 8) -> float:
        """Tokens of one text of `make`, by trial: how many of them fill a given room."""
        return self.count([make() for _ in range(trials)]) / trials
