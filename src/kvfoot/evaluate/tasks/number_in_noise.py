"""The passkey as first published (Landmark Attention): a number of five digits, said twice, in repeated noise."""

from __future__ import annotations

import random
from dataclasses import dataclass

from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.tasks import haystack
from kvfoot.evaluate.tasks.measure import largest, tokens_of

HEAD = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about the important information there.\n"
)
QUESTION = "What is the pass key?"
PREFIX = "The pass key is"


@dataclass(frozen=True)
class NoisePasskey:
    """Depths are spread evenly over the samples."""

    name: str = "passkey_noise"
    chat: bool | None = None
    category: str = "recall"
    metric: str = "exact"

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        number = str(rng.randint(10**4, 10**5 - 1))
        needle = f"The pass key is {number}. Remember it. {number} is the pass key."
        hay = haystack.noise([needle], haystack.spread(rng, 1, index))
        answer = f" {number}"
        room = count([answer]) + 4
        size = largest(self.name, lambda n: tokens_of(count, HEAD + hay(n), QUESTION, PREFIX) + room, length)
        document = HEAD + hay(size)
        depth = (document.index(needle) - len(HEAD)) / (len(document) - len(HEAD))
        return Example(document, QUESTION, (answer,), (), PREFIX, None, room, {"depth": depth})
