"""HELMET's tasks by name, with their files and addresses."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.evaluate.benchmarks import helmet as h
from kvfoot.evaluate.benchmarks.rows import PARQUET, Hub, Rows, load
from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.tasks.measure import tokens_of

QA = "question answering"
INFINITE = "hf://datasets/xinrongzhang2022/InfiniteBench/{}.jsonl"
POPULAR = 3.0
"""popqa asks about entities of fewer than 10^3 page views."""


def _sizes(name: str, sizes: str) -> tuple[str, ...]:
    return tuple(name.format(size) for size in sizes.split())


def _kilt(test: str, train: str, depth: int) -> h.Form:
    files = _sizes(f"kilt/{test}_1000_k{{}}_dep{depth}.jsonl", "20 50 105 220 440 1000")
    return h.Form("rag", "substring", 20, h.rag, files, f"kilt/{train}_1000_k3_dep{depth}.jsonl")


def _labels(hub: str, fields: tuple[str, str], config: str | None = None, test: str = "test") -> h.Form:
    shown, asked = (Hub(hub, split, config, PARQUET) for split in ("train", test))
    return h.Form("in-context learning", "exact", 20, h.many_shot, hub=asked, shown=shown, fields=fields)


def _infinite(category: str, metric: str, room: int, build: h.Build, name: str) -> h.Form:
    return h.Form(category, metric, room, build, hub=Hub(files=INFINITE.format(name)), chat=None)


FORMS: dict[str, h.Form] = {
    "banking77": _labels("PolyAI/banking77", ("text", "label")),
    "clinic150": _labels("clinc/clinc_oos", ("text", "intent"), "plus", "validation"),
    "hotpotqa": _kilt("hotpotqa-dev-multikilt", "hotpotqa-train-multikilt", 3),
    "infbench_choice": _infinite(QA, "exact", 10, h.choice, "longbook_choice_eng"),
    "infbench_qa": _infinite(QA, "rouge", 10, h.novel_qa, "longbook_qa_eng"),
    "infbench_sum": _infinite("summary", "rouge", 1200, h.plot, "longbook_sum_eng"),
    "json_kv": h.Form(
        "recall", "substring", 100, h.key_value, _sizes("json_kv/test_k{}_dep6.jsonl", "50 105 220 440 900 1800")
    ),
    "msmarco": h.Form(
        "rerank", "ndcg@10", 200, h.rank,
        _sizes("msmarco/test_reranking_data_k{}_dep3.jsonl", "14 50 130 285 600 1000"),
        "msmarco/test_reranking_data_k10_dep3.jsonl",
    ),
    "multi_lexsum": h.Form(
        "summary", "rouge", 400, h.case, hub=Hub("allenai/multi_lexsum", "validation", "v20230518", PARQUET), chat=None
    ),
    "narrativeqa": h.Form(QA, "rouge", 100, h.narrative, hub=Hub("deepmind/narrativeqa"), chat=None),
    "nlu": _labels("xingkunliuxtracta/nlu_evaluation_data", ("text", "label"), None, "train"),
    "nq": _kilt("nq-dev-multikilt", "nq-train-multikilt", 6),
    "popqa": _kilt("popqa_test", "popqa_test", 6),
    "trec_coarse": _labels("CogComp/trec", ("text", "coarse_label")),
    "trec_fine": _labels("CogComp/trec", ("text", "fine_label")),
    "triviaqa": _kilt("triviaqa-dev-multikilt", "triviaqa-train-multikilt", 6),
}  # fmt: skip
NAMES = tuple(FORMS)


@dataclass(frozen=True)
class Helmet:
    """data_set: one of NAMES. Hub data may lie in the folder instead, as DATA_SET.jsonl and DATA_SET_train.jsonl."""

    name: str
    data_set: str
    folder: Path | None = None

    @property
    def form(self) -> h.Form:
        return FORMS[self.data_set]

    @property
    def category(self) -> str:
        return self.form.category

    @property
    def metric(self) -> str:
        return self.form.metric

    @property
    def chat(self) -> bool | None:
        return self.form.chat

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        """Of the folder's files, from the longest down, the first whose sample fits."""
        if self.form.hub is not None:
            return self._make(self._rows(f"{self.data_set}.jsonl", self.form.hub), index, length, seed, count)
        for file in reversed(self.form.files):
            if self.folder and not (self.folder / file).is_file():
                continue
            example = self._make(self._rows(file, None), index, length, seed, count)
            turn = tokens_of(count, example.document, example.question, example.prefix)
            if turn + example.room <= length:
                return example
        if self.folder and any((self.folder / file).is_file() for file in self.form.files):
            raise UsageError(f"{self.name}: no sample {index} of at most {length} tokens: ask for a longer context")
        raise UsageError(
            f"{self.name} needs HELMET's data ({self.form.files[0]} and so on): run its scripts/download_data.sh, keep "
            "its folder data as FOLDER/helmet, and name FOLDER with --data"
        )

    def _rows(self, file: str, hub: Hub | None) -> Rows:
        return load(self.name, self.folder, (file,), hub)

    def _make(self, rows: Rows, index: int, length: int, seed: int, count: Count) -> Example:
        popular = self.data_set == "popqa"
        order = random.Random(f"{self.data_set}/{seed}").sample(range(len(rows)), len(rows))
        if popular:
            order = [i for i in order if math.log10(rows[i]["s_pop"]) < POPULAR]
        if index >= len(order):
            raise UsageError(f"{self.name} has {len(order)} samples: ask for fewer")
        form, demos = self.form, rows
        if form.demos:
            demos = self._rows(form.demos, None)
        elif form.shown is not None:
            demos = self._rows(f"{self.data_set}_train.jsonl", form.shown)
        rng = random.Random(f"{self.data_set}/{length}/{seed}/{index}")
        row = rows[order[index]]
        return form.build(h.Made(form, row, demos, rng, length, count, self.name))


def helmet_task(name: str, folder: Path | None = None) -> Helmet:
    """`helmet_nq`, ...; `UsageError` names the nearest ones."""
    data_set = name.removeprefix("helmet_")
    if data_set not in FORMS:
        raise UsageError(f"unknown HELMET task {name!r}{did_you_mean(data_set, list(NAMES))}")
    return Helmet(name, data_set, folder)
