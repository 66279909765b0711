"""JSON key-value retrieval as HELMET asks it (after Lost in the Middle): one object, two worked keys, one asked for.

A length is met to within one pair: nothing else is in the context.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from typing import Literal

from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.tasks.measure import largest, tokens_of

HEAD = "JSON data:\n"
INSTRUCTION = "Extract the value corresponding to the specified key in the JSON object below."
PREFIX = "Corresponding value:"
SHOTS = 2


@dataclass(frozen=True)
class JsonKeyValue:
    """kind: UUIDs as published, or numbers of six digits, which small models can copy."""

    name: str = "json_kv"
    kind: Literal["uuid", "number"] = "uuid"
    chat: bool | None = None
    category: str = "recall"
    metric: str = "exact"

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        pairs: list[tuple[str, str]] = []
        taken: set[str] = set()
        place = (0.5 + index * 0.6180339887498949) % 1
        shots = [rng.random() for _ in range(SHOTS)]

        def parts(size: int) -> tuple[str, str, str, float]:
            """Document, question, answer and depth with `size` pairs beyond the least."""
            total = size + SHOTS + 1
            while len(pairs) < total:
                pairs.append((self._value(rng, taken), self._value(rng, taken)))
            asked = min(total - 1, int(place * total))
            others = [i for i in range(total) if i != asked]
            first = int(shots[0] * len(others))
            shown = [others[first], others[(first + 1 + int(shots[1] * (len(others) - 1))) % len(others)]]
            document = HEAD + "{" + ",\n ".join(f'"{k}": "{v}"' for k, v in pairs[:total]) + "}"
            worked = "".join(f"Key: {pairs[i][0]}\n{PREFIX} {pairs[i][1]}\n\n" for i in shown)
            key, value = pairs[asked]
            return document, f"{INSTRUCTION}\n\n{worked}Key: {key}", f" {value}", asked / max(1, total - 1)

        room = count([parts(0)[2]]) + 8

        def tokens(size: int) -> int:
            document, question, _, _ = parts(size)
            return tokens_of(count, document, question, PREFIX) + room

        document, question, answer, depth = parts(largest(self.name, tokens, length))
        return Example(document, question, (answer,), (), PREFIX, None, room, {"depth": depth})

    def _value(self, rng: random.Random, taken: set[str]) -> str:
        while True:
            number = self.kind == "number"
            value = str(rng.randrange(10**5, 10**6)) if number else str(uuid.UUID(int=rng.getrandbits(128), version=4))
            if value not in taken:
                taken.add(value)
                return value
