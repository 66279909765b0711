"""The tasks by name: which family, which shape, how it is scored, how many questions share a context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.evaluate.tasks import (
    chain,
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
from kvfoot.evaluate.tasks.corpus import Corpus
from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.fit import fit
from kvfoot.evaluate.tasks.phrases_eval import DEV, DEV2, DEV3
from kvfoot.evaluate.tasks.phrases_test import TEST
from kvfoot.evaluate.tasks.sample import Category, Count, Draft, Metric, Sample
from kvfoot.evaluate.tasks.split import Side, seed_name
from kvfoot.evaluate.tasks.wording import FixedWording

WORDINGS: dict[Side, FixedWording] = {"dev": DEV, "dev2": DEV2, "dev3": DEV3, "test": TEST}


@dataclass(frozen=True)
class Task:
    """One task at one shape.

    metric: `exact`, every unit of an answer right; `prefix`, the share of units before the first wrong one.
    shape: the family's frozen shape. draft: the family's function of (draw, shape, room in tokens).
    """

    name: str
    category: Category
    metric: Metric
    family: str
    shape: Any
    draft: Callable[[Draw, Any, int], Draft | None]

    def sample(self, corpus: Corpus, count: Count, length: int, seed: int, index: int = 0) -> Sample:
        """The `index`-th sample at `length` tokens (context, questions, answers): a function of its arguments only.

        count: tokens of a list of texts, added up, by the tokenizer of the model at hand.
        """
        wording = WORDINGS.get(corpus.side)
        if wording is None:
            raise UsageError(
                "the training side has no evaluation wording: read the corpus with side 'dev', 'dev2', 'dev3' or 'test'"
            )
        for attempt in range(20):
            draw = Draw(
                f"{seed_name(corpus.side)}/{self.name}/{length}/{seed}/{index}/{attempt}", corpus, wording, count
            )
            shape = self.shape
            if isinstance(shape, passkey.PasskeyShape) and shape.depth is None:
                shape = passkey.PasskeyShape(shape.keys, shape.values, (index * 0.381966) % 1)
            draft = self.draft(draw, shape, length)
            sample = fit(draw, self.name, draft, length) if draft else None
            if sample is not None:
                return sample
        raise UsageError(f"{self.name} does not fit into {length} tokens; ask for a longer context")


def _tasks() -> list[Task]:
    needle, multi = needles.draft, multivalue.draft
    return [
        Task("passkey", "recall", "exact", "passkey", passkey.PasskeyShape(), passkey.draft),
        Task("keys4", "recall", "exact", "needles", needles.NeedleShape(4, 4), needle),
        Task("keys16", "recall", "exact", "needles", needles.NeedleShape(16, 4), needle),
        Task("keys64", "recall", "exact", "needles", needles.NeedleShape(64, 8), needle),
        Task("words16", "recall", "exact", "needles", needles.NeedleShape(16, 4, "words"), needle),
        Task("multivalue", "recall", "exact", "multivalue", multivalue.MultiValueShape(4, 4, 2), multi),
        Task("multiquery", "recall", "exact", "multiquery", multiquery.MultiQueryShape(8, 4, 2), multiquery.draft),
        Task("json-numbers", "recall", "exact", "jsonkv", jsonkv.JsonShape(60), jsonkv.draft),
        Task("json-words", "recall", "exact", "jsonkv", jsonkv.JsonShape(60, "word"), jsonkv.draft),
        Task("json-uuids", "recall", "exact", "jsonkv", jsonkv.JsonShape(60, "uuid", "uuid", 4), jsonkv.draft),
        Task("variables", "recall", "exact", "variables", variables.VariableShape(4, 3, 2), variables.draft),
        Task("labels", "in-context learning", "exact", "labels", labels.LabelShape(), labels.draft),
        Task("chain", "long output", "prefix", "chain", chain.ChainShape(32), chain.draft),
        Task("path", "long output", "prefix", "path", path.PathShape((24, 40)), path.draft),
        Task("table", "long output", "prefix", "table", table.TableShape(40), table.draft),
        Task("quote", "text", "exact", "quote", quote.QuoteShape(4), quote.draft),
    ]


TASKS: dict[str, Task] = {task.name: task for task in _tasks()}


def find_task(name: str) -> Task:
    """A task by name; `UsageError` names the nearest ones."""
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}{did_you_mean(name, list(TASKS))}")
    return TASKS[name]
