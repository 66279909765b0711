"""Restating: records in sentences, to be written again as tab-separated rows: a long output that must look back.

The score is row F1: rows of the answer that are rows of the reference, in any order. A length, answer included, is met
to within one record.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.scorers import lines_f1
from kvfoot.evaluate.tasks.measure import largest, tokens_of
from kvfoot.evaluate.tasks.texts import words

HEAD = "Below is a list of records, each in one sentence.\n\n"
QUESTION = (
    "Write all records again, in the same order, one line each: the name, the weight, the hall and the price, "
    "separated by tabs, without units and without any other words."
)
COLUMNS = "name\tweight\thall\tprice"


def rows_f1(text: str, reference: str) -> float:
    """`lines_f1` of the rows; a fence, or the heading once more, is no row."""
    rows = [line for line in text.splitlines() if not line.startswith("```") and line.strip() != COLUMNS]
    return lines_f1("\n".join(rows), [reference])


@dataclass(frozen=True)
class Restate:
    name: str = "restate"
    chat: bool | None = None
    category: str = "long output"
    metric: str = "row F1"

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        records: dict[str, tuple[int, int, int]] = {}
        adjectives, nouns = words("adjective"), words("noun")

        def first(size: int) -> list[tuple[str, tuple[int, int, int]]]:
            while len(records) < size:
                name = f"{rng.choice(adjectives)}-{rng.choice(nouns)}"
                if name not in records:
                    records[name] = (rng.randint(11, 99), rng.randint(1, 20), rng.randint(100, 999))
            return list(records.items())[:size]

        def parts(size: int) -> tuple[str, tuple[str, ...]]:
            kept = first(size + 1)
            lines = [
                f"The {name} weighs {w} grams, stands in hall {h} and costs {p} coins." for name, (w, h, p) in kept
            ]
            return HEAD + "\n".join(lines), tuple(f"\n{name}\t{w}\t{h}\t{p}" for name, (w, h, p) in kept)

        def room(rows: tuple[str, ...]) -> int:
            return count(["".join(rows)]) + 8

        def tokens(size: int) -> int:
            document, rows = parts(size)
            return tokens_of(count, document, QUESTION, COLUMNS) + room(rows)

        size = largest(self.name, tokens, length)
        document, rows = parts(size)
        reference = "".join(rows)
        score = functools.partial(rows_f1, reference=reference)
        return Example(document, QUESTION, (reference,), rows, COLUMNS, score, room(rows), {"records": len(rows)})
