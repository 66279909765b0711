"""Many-shot label mapping: sentences of books with made-up labels, in HELMET's form.

A class is a content word, a sentence belongs to the class whose word it holds, and each class has a random digit. So
the mapping cannot be known beforehand, and a new sentence can be labelled by what it shares with the examples.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.tasks.measure import largest, tokens_of
from kvfoot.evaluate.tasks.texts import Texts, read_texts

HEAD = (
    "Use the provided mapping from the text to label to assign a label to the text. Only output "
    '"label: {label}" and nothing else. \n\n'
)
PREFIX = "label:"
SHORTEST, LONGEST = 30, 140
_END = re.compile(r"(?<=[.!?])[\"”’]* (?=[\"“‘]*[A-Z])")
_CONTENT = re.compile(r"[a-z]{5,12}")


@functools.lru_cache(maxsize=2)
def sentences_by_word(texts: Texts) -> dict[str, tuple[str, ...]]:
    """Sentences of 30 to 140 characters by each of their words of 5 to 12 letters, for words that 40 to 400 hold."""
    found: dict[str, list[str]] = {}
    for text in texts.contents:
        for sentence in dict.fromkeys(part.strip() for part in _END.split(text)):
            if SHORTEST <= len(sentence) <= LONGEST:
                for word in sorted(set(_CONTENT.findall(sentence))):
                    found.setdefault(word, []).append(sentence)
    return {word: tuple(found[word]) for word in sorted(found) if 40 <= len(found[word]) <= 400}


@dataclass(frozen=True)
class ManyShot:
    """classes: at most 10, so that a label is one digit; chance is 1 / classes."""

    name: str = "icl"
    classes: int = 6
    folder: Path | None = None
    chat: bool | None = None
    category: str = "in-context learning"
    metric: str = "exact"

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        shelf = sentences_by_word(read_texts(self.folder, self.name))
        if len(shelf) < 4 * self.classes:
            raise UsageError(f"{self.name}: the books of {self.folder} are too short; add some")
        chosen = rng.sample(sorted(shelf), self.classes)
        label = dict(zip(chosen, rng.sample(range(10), self.classes), strict=True))
        one = {w: [s for s in shelf[w] if sum(other in s for other in chosen) == 1] for w in chosen}
        pools = {word: rng.sample(sentences, len(sentences)) for word, sentences in one.items() if len(sentences) >= 2}
        asked = rng.choice(sorted(pools))
        query = pools[asked].pop()
        # rounds of one sentence a class, in a new order each, as HELMET balances its examples; a small class repeats
        streams = {word: itertools.cycle(pools[word]) for word in sorted(pools)}
        shots: list[str] = []

        def first(size: int) -> list[str]:
            while len(shots) < size:
                shots.extend(
                    f"{next(streams[word])}\n{PREFIX} {label[word]}" for word in rng.sample(sorted(pools), len(pools))
                )
            return shots[:size]

        answer = f" {label[asked]}"
        room = count([answer]) + 4

        def document(size: int) -> str:
            return HEAD + "\n\n".join(first(size))

        def tokens(size: int) -> int:
            return tokens_of(count, document(size), query, PREFIX) + room

        size = largest(self.name, tokens, length)
        text = document(size)
        seen = Counter(shot.rsplit(" ", 1)[1] for shot in first(size))
        figures = {"shots": size, "shots_of_class": seen[str(label[asked])]}
        return Example(text, query, (answer,), (), PREFIX, None, room, figures)
