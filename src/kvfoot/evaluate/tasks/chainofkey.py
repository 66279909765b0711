"""Chain-of-key as RefreshKV publishes it (section 4.5 of its specification): any chain of T keys of the context.

Keys are two words joined by a hyphen. All words of a sample form one cycle, so that every key has exactly one
successor. The score is the length of the valid prefix over T; there is no single reference, hence no NLL.
`chain` is the task with one right answer.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.tasks.measure import largest, tokens_of
from kvfoot.evaluate.tasks.texts import words

LINE = "Name of key: "


def valid_prefix(text: str, keys: frozenset[str], hops: int) -> float:
    """Keys of a comma-separated answer up to the first one that is not in the context or does not go on, over `hops`.

    Commas or line ends part keys; a full stop or quotes around a key are not held against it. No more than `hops`
    count.
    """
    found, last = 0, ""
    for part in text.replace("\n", ",").split(","):
        key = part.strip().strip("\"'.").lower()
        if found == hops or key not in keys or (last and key.split("-")[0] != last):
            break
        found, last = found + 1, key.split("-")[1]
    return found / hops


@dataclass(frozen=True)
class ChainOfKey:
    """hops: T, keys to be listed."""

    name: str = "chain-of-key"
    hops: int = 10
    chat: bool | None = None
    category: str = "long output"
    metric: str = "valid prefix"

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        pool = sorted({*words("noun"), *words("adjective")})
        pool = rng.sample(pool, len(pool))
        shown, pool = pool[: self.hops + 1], pool[self.hops + 1 :]
        example = ", ".join(f"{a}-{b}" for a, b in itertools.pairwise(shown))
        order = rng.random()
        task = (
            f"Below is a list of keys, each of two words joined by a hyphen. Write a chain of {self.hops} keys from "
            f"the list, separated by commas, in which every key begins with the word that ended the key before it. "
            f"You may begin with any key."
        )
        warning = "The keys of this example are not in the list; do not copy them."
        head = f"{task}\n\nExample of a chain: {example}\n{warning}\n\n"
        question, prefix = task, f"Chain of {self.hops} keys:"
        room = int(1.5 * count([" " + example])) + 8

        def keys(size: int) -> list[str]:
            part = pool[: self.hops + size]
            lines = [f"{a}-{b}" for a, b in zip(part, [*part[1:], part[0]], strict=True)]
            random.Random(order).shuffle(lines)
            return lines

        def document(size: int) -> str:
            return head + "\n".join(LINE + key for key in keys(size))

        most = len(pool) - self.hops
        size = largest(self.name, lambda n: tokens_of(count, document(n), question, prefix) + room, length, most)
        if size == most:
            raise UsageError(f"{self.name} has words for fewer than {length} tokens: ask for a shorter context")
        score = functools.partial(valid_prefix, keys=frozenset(keys(size)), hops=self.hops)
        return Example(document(size), question, (), (), prefix, score, room, {"keys": self.hops + size})
