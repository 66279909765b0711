"""What training documents are made of: shares of the families, and the groups that share heads (spread.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvfoot.evaluate.tasks import (
    chain,
    copying,
    jsonkv,
    labels,
    multiquery,
    multivalue,
    needles,
    passkey,
    path,
    quote,
    table,
    variables,
)

FAMILIES: dict[str, Any] = {
    "needles": needles,
    "passkey": passkey,
    "multivalue": multivalue,
    "multiquery": multiquery,
    "json": jsonkv,
    "chain": chain,
    "path": path,
    "variables": variables,
    "table": table,
    "labels": labels,
    "quote": quote,
    "copying": copying,
}
GROUPS: tuple[tuple[str, ...], ...] = (
    ("needles", "passkey", "multiquery", "labels"),
    ("json", "copying"),
    ("chain", "quote"),
    ("path", "variables"),
    ("table", "multivalue"),
)


@dataclass(frozen=True)
class Mix:
    """Relative shares of documents; `book`: share of book text. A row holds documents of one group, and book text."""

    name: str
    book: float
    shares: dict[str, float]

    def mass(self, group: int) -> float:
        return sum(self.shares.get(family, 0.0) for family in GROUPS[group])

    def of_group(self, group: int) -> dict[str, float]:
        """Shares within a row of `group`; they add up to 1."""
        mass = self.mass(group)
        shares = {name: self.shares[name] / mass * (1 - self.book) for name in GROUPS[group] if name in self.shares}
        return {"book": self.book, **shares}


START = Mix(
    "start",
    0.12,
    {
        "needles": 0.24, "passkey": 0.03, "multivalue": 0.06, "multiquery": 0.03, "json": 0.24, "copying": 0.06,
        "chain": 0.06, "path": 0.07, "variables": 0.12, "table": 0.07, "labels": 0.04, "quote": 0.01,
    },
)  # fmt: skip
MAIN = Mix(
    "main",
    0.17,
    {
        "needles": 0.13, "passkey": 0.04, "multivalue": 0.12, "multiquery": 0.06, "json": 0.09, "chain": 0.08,
        "path": 0.12, "variables": 0.19, "table": 0.13, "labels": 0.04, "quote": 0.03,
    },
)  # fmt: skip
TAIL = Mix(
    "tail",
    0.15,
    {
        "needles": 0.08, "passkey": 0.04, "multivalue": 0.15, "multiquery": 0.06, "json": 0.07, "chain": 0.11,
        "path": 0.14, "variables": 0.19, "table": 0.18, "labels": 0.03, "quote": 0.02,
    },
)  # fmt: skip
FINISH = Mix(
    "finish",
    0.12,
    {
        "needles": 0.08, "passkey": 0.06, "multivalue": 0.18, "multiquery": 0.12, "json": 0.03, "chain": 0.07,
        "path": 0.20, "variables": 0.12, "table": 0.22, "labels": 0.02, "quote": 0.01,
    },
)  # fmt: skip
# of the plan without a tail: what was missed (lists, several keys, single numbers, routes, tables) has its share early
EARLY = Mix(
    "early",
    0.15,
    {
        "needles": 0.22, "passkey": 0.05, "multivalue": 0.08, "multiquery": 0.05, "json": 0.21, "copying": 0.05,
        "chain": 0.06, "path": 0.08, "variables": 0.09, "table": 0.08, "labels": 0.03, "quote": 0.01,
    },
)  # fmt: skip
MIDDLE = Mix(
    "middle",
    0.20,
    {
        "needles": 0.10, "passkey": 0.07, "multivalue": 0.16, "multiquery": 0.10, "json": 0.07, "chain": 0.09,
        "path": 0.14, "variables": 0.12, "table": 0.13, "labels": 0.02, "quote": 0.02,
    },
)  # fmt: skip
LATE = Mix(
    "late",
    0.15,
    {
        "needles": 0.07, "passkey": 0.07, "multivalue": 0.18, "multiquery": 0.11, "json": 0.05, "chain": 0.11,
        "path": 0.16, "variables": 0.09, "table": 0.15, "labels": 0.02, "quote": 0.01,
    },
)  # fmt: skip
# of a run that goes on from a model which does long answers and misses single things in running text
AGAIN = Mix(
    "again",
    0.12,
    {
        "needles": 0.15, "passkey": 0.10, "multivalue": 0.15, "multiquery": 0.12, "json": 0.05, "chain": 0.09,
        "path": 0.10, "variables": 0.11, "table": 0.11, "labels": 0.02, "quote": 0.02,
    },
)  # fmt: skip
MIXES = {mix.name: mix for mix in (START, MAIN, TAIL, FINISH, EARLY, MIDDLE, LATE, AGAIN)}
