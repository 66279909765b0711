"""LongProc's tasks by name: `html_to_tsv_0.5k`, and `tom_tracking_2k:partial` for the partial accuracy."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.evaluate.longproc import beliefs, countdown, html, pseudocode, route, travel
from kvfoot.evaluate.longproc.source import Grade, Item, open_source
from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.tasks.measure import tokens_of

FAMILIES: dict[str, ModuleType] = {
    "countdown": countdown,
    "html_to_tsv": html,
    "path_traversal": route,
    "pseudo_to_code": pseudocode,
    "tom_tracking": beliefs,
    "travel_planning": travel,
}
NAMES = tuple(f"{family}_{level}" for family, module in FAMILIES.items() for level in module.LEVELS)
WITHOUT_PARTIAL = ("html_to_tsv", "pseudo_to_code")
MARGIN = 0.2
"""Tokens of a generated answer beyond the reference's, as a share of it."""

_sizes: WeakKeyDictionary[Count, dict[tuple[str, int], tuple[int, int]]] = WeakKeyDictionary()


def _accuracy(answer: str, grade: Grade, partial: bool) -> float:
    return grade(answer)[int(partial)]


@functools.lru_cache(maxsize=16)
def _items(folder: Path, family: str, level: str) -> tuple[Item, ...]:
    load: Callable[..., list[Item]] = FAMILIES[family].items
    return tuple(load(open_source(folder, family), level))


@dataclass(frozen=True)
class LongProc:
    """family and level as the data has them. A length chooses among the problems: those that fit, answer included."""

    name: str
    family: str
    level: str
    partial: bool = False
    folder: Path | None = None
    chat: bool | None = None
    category: str = "long output"

    @property
    def metric(self) -> str:
        return "row F1" if self.family == "html_to_tsv" else "partial accuracy" if self.partial else "accuracy"

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        open_source(self.folder, self.name)
        assert self.folder is not None
        items = _items(self.folder, self.family, self.level)
        fitting = -1
        for i in random.Random(f"{self.family}_{self.level}/{seed}").sample(range(len(items)), len(items)):
            if len(items[i].prompt) > 16 * length:  # far too long: not worth counting
                continue
            prompt, room = self._size(i, items[i], count)
            fitting += prompt + room <= length
            if fitting == index:
                score = functools.partial(_accuracy, grade=items[i].grade, partial=self.partial)
                return Example(items[i].prompt, "", (items[i].reference,), (), "", score, room, {"problem": i})
        raise UsageError(
            f"{self.name} has {fitting + 1} problems within {length} tokens, answer included: ask for fewer samples "
            f"or a longer context"
        )

    def _size(self, i: int, item: Item, count: Count) -> tuple[int, int]:
        """Tokens of the prompt, and the room of the answer; remembered for as long as `count` lives."""
        known = _sizes.setdefault(count, {})
        key = (f"{self.folder}/{self.family}_{self.level}", i)
        if key not in known:
            room = int(count([item.reference]) * (1 + MARGIN)) + 32
            known[key] = tokens_of(count, item.prompt, "", ""), room
        return known[key]


def longproc_task(name: str, folder: Path | None = None) -> LongProc:
    """A task by name; `UsageError` names the nearest ones."""
    base, _, suffix = name.partition(":")
    if base not in NAMES:
        raise UsageError(f"unknown LongProc task {name!r}{did_you_mean(base, list(NAMES))}")
    family, level = base.rsplit("_", 1)
    if suffix not in ("", "partial") or (suffix and family in WITHOUT_PARTIAL):
        raise UsageError(f"{base} has no score {suffix!r}: write {base}")
    return LongProc(name, family, level, bool(suffix), folder)
