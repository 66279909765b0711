"""LongBench (arXiv 2308.14508): its 16 English data sets with its prompts, scores and rule for too long texts.

Where a prompt exceeds the length, the middle of the context is left out. The Chinese data sets need a word segmenter
for their scores and are not offered.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.evaluate.benchmarks.rows import Hub, load
from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.scorers import SCORERS, best, label
from kvfoot.evaluate.tasks.measure import largest, tokens_of

ARCHIVE = "zip://data/{}.jsonl::hf://datasets/zai-org/LongBench/data.zip"
QA = "question answering"
PASSAGES = "Answer the question based on the given passages. Only give me the answer and do not output any other words."
STORY = (
    "Answer the question as concisely as you can, using a single phrase if possible. Do not provide any explanation."
)
ARTICLE = (
    "Answer the question as concisely as you can, using a single phrase or sentence if possible. If the question "
    "cannot "
    'be answered based on the information in the article, write "unanswerable". If the question is a yes/no question, '
    'answer "yes", "no", or "unanswerable". Do not provide any explanation.'
)
SECOND_ARTICLE = ARTICLE.replace("as concisely", "based on the above article as concisely", 1)


@dataclass(frozen=True)
class Form:
    """before, after: the context. prefix: of the answer. first_line: only that counts. chat: as published."""

    category: str
    metric: str
    before: str
    after: str
    prefix: str
    room: int
    chat: bool | None = None
    first_line: bool = False


def _passages(room: int = 32) -> Form:
    before = f"{PASSAGES}\n\nThe following are given passages.\n"
    return Form(QA, "f1", before, f"{PASSAGES}\n\nQuestion: {{input}}", "Answer:", room)


FORMS: dict[str, Form] = {
    "2wikimqa": _passages(),
    "gov_report": Form(
        "summary", "rouge",
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n",
        "Now, write a one-page summary of the report.", "Summary:", 512,
    ),
    "hotpotqa": _passages(),
    "lcc": Form("code", "code line", "Please complete the code given below. \n", "", "Next line of code:\n", 64, False),
    "multi_news": Form(
        "summary", "rouge", "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n",
        "Now, write a one-page summary of all the news.", "Summary:", 512,
    ),
    "multifieldqa_en": Form(
        QA, "f1", "Read the following text and answer briefly.\n\n",
        "Now, answer the following question based on the above text, only give me the answer and do not output any "
        "other "
        "words.\n\nQuestion: {input}", "Answer:", 64,
    ),
    "musique": _passages(),
    "narrativeqa": Form(
        QA, "f1",
        f"You are given a story, which can be either a novel or a movie script, and a question. {STORY}\n\nStory: ",
        f"Now, answer the question based on the story{STORY[len('Answer the question') :]}\n\nQuestion: {{input}}",
        "Answer:", 128,
    ),
    "passage_count": Form(
        "aggregation", "numbers",
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read "
        "these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other "
        "words, how many non-repeating paragraphs are there in total?\n\n",
        "Please enter the final count of unique paragraphs after removing duplicates. The output format should only "
        "contain the number, such as 1, 2, 3, and so on.", "The final answer is:", 32,
    ),
    "passage_retrieval_en": Form(
        "recall", "numbers",
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the "
        "abstract is from.\n\n",
        "The following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that the abstract is "
        "from. "
        'The answer format must be like "Paragraph 1", "Paragraph 2", etc.', "The answer is:", 32,
    ),
    "qasper": Form(
        QA, "f1", f"You are given a scientific article and a question. {ARTICLE}\n\nArticle: ",
        f"{SECOND_ARTICLE}\n\nQuestion: {{input}}", "Answer:", 128,
    ),
    "qmsum": Form(
        "summary", "rouge",
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in "
        "one or more sentences.\n\nTranscript:\n",
        "Now, answer the query based on the above meeting transcript in one or more sentences.\n\nQuery: {input}",
        "Answer:", 512,
    ),
    "repobench-p": Form(
        "code", "code line", "Please complete the code given below. \n", "{input}", "Next line of code:\n", 64, False
    ),
    "samsum": Form(
        "summary", "rouge", "Summarize the dialogue into a few short sentences. The following are some examples.\n\n",
        "{input}", "", 128, False, True,
    ),
    "trec": Form(
        "in-context learning", "label",
        "Please determine the type of the question below. Here are some examples of questions.\n\n",
        "{input}", "", 64, False, True,
    ),
    "triviaqa": Form(
        QA, "f1",
        "Answer the question based on the given passage. Only give me the answer and do not output any other words. "
        "The "
        "following are some examples.\n\n", "{input}", "", 32, False, True,
    ),
}  # fmt: skip
NAMES = tuple(FORMS)


def grade(answer: str, form: Form, answers: Sequence[str], classes: Sequence[str]) -> float:
    if form.first_line:
        answer = answer.lstrip("\n").split("\n")[0]
    if form.metric == "label":
        return best(lambda said, wanted: label(said, wanted, classes), answer, answers)
    return SCORERS[form.metric](answer, answers)


@dataclass(frozen=True)
class LongBench:
    """data_set: one of NAMES. The samples' order is the seed's."""

    name: str
    data_set: str
    folder: Path | None = None

    @property
    def form(self) -> Form:
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
        form, files = self.form, (f"{self.data_set}.jsonl", f"data/{self.data_set}.jsonl")
        rows = load(self.name, self.folder, files, Hub(files=ARCHIVE.format(self.data_set)))
        if index >= len(rows):
            raise UsageError(f"{self.name} has {len(rows)} samples: ask for fewer")
        row = rows[random.Random(f"{self.data_set}/{seed}").sample(range(len(rows)), len(rows))[index]]
        question = form.after.replace("{input}", row["input"])
        words = row["context"].split(" ")

        def document(size: int) -> str:
            if size >= len(words):
                return form.before + row["context"]
            half = size // 2
            return form.before + " ".join([*words[:half], *words[len(words) - (size - half) :]])

        def tokens(size: int) -> int:
            return tokens_of(count, document(size), question, form.prefix) + form.room

        size = largest(self.name, tokens, length, len(words))
        score = functools.partial(
            grade, form=form, answers=tuple(row["answers"]), classes=tuple(row["all_classes"] or ())
        )
        lead = "" if form.prefix.endswith("\n") else " "
        answers = tuple(lead + answer.strip() for answer in row["answers"])
        whole = float(size >= len(words))
        return Example(document(size), question, answers, (), form.prefix, score, form.room, {"whole": whole})


def longbench_task(name: str, folder: Path | None = None) -> LongBench:
    """`longbench_hotpotqa`, ...; `UsageError` names the nearest ones."""
    data_set = name.removeprefix("longbench_")
    if data_set not in FORMS:
        raise UsageError(f"unknown LongBench task {name!r}{did_you_mean(data_set, list(NAMES))}")
    return LongBench(name, data_set, folder)
