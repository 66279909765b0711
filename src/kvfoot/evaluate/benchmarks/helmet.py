"""HELMET (arXiv 2410.02694) without citations: recall, RAG, re-ranking, many-shot, long QA, summaries.

Prompts and scores are the benchmark's. Recall, RAG and re-ranking read its `data` folder (download_data.sh): of the
files of one task, the longest whose sample fits. Many-shot takes as many examples as fit, the others cut the text's
end. Differences: examples are drawn by our own seeds, and long answers are scored by ROUGE-L where HELMET asks a judge.
Its RULER tasks are made by kvfoot's own generators (niah_multikey_2, niah_multikey_3, niah_multivalue).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvfoot.evaluate.benchmarks.rows import Hub, Rows
from kvfoot.evaluate.protocol import Count, Example
from kvfoot.evaluate.scorers import after, exact, ndcg, ranking, rouge_l, substring
from kvfoot.evaluate.tasks.measure import largest, tokens_of

OMITTED = " ... [the rest of the text is omitted]"
SHOTS = 2
JSON = "Extract the value corresponding to the specified key in the JSON object below."
RAG = (
    "Use the given documents to write a concise and short answer to the question. Write your answer in the following "
    "format:\nAnswer: [answer]\n\n"
)
RANK = (
    "You are provided with a list of documents, each indicated by their ID. Rank each document based on their "
    "relevance to the question in descending order from most relelvant to least relevant texts. Include all "
    "documents in the rankings. Write your answer using the unique IDs, with the following format:\nRanking: ID3 > "
    "ID1 > ID2\n\n"
)
LABEL = (
    "Use the provided mapping from the text to label to assign a label to the text. Only output "
    '"label: {label}" and nothing else. \n\n'
)


Build = Callable[["Made"], Example]


@dataclass(frozen=True)
class Form:
    """files: of the data folder, shortest first; demos: of the examples; hub: test rows, examples' rows."""

    category: str
    metric: str
    room: int
    build: Build
    files: tuple[str, ...] = ()
    demos: str = ""
    hub: Hub | None = None
    shown: Hub | None = None
    chat: bool | None = False
    fields: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Made:
    """What a builder is given: a row, the rows to draw examples from, and the means to measure."""

    form: Form
    row: Mapping[str, Any]
    demos: Rows
    rng: random.Random
    length: int
    count: Count
    name: str

    def draw(self, key: str) -> list[Mapping[str, Any]]:
        """Examples whose `key` is not the row's, and which differ in it."""
        found: dict[Any, Mapping[str, Any]] = {}
        for index in self.rng.sample(range(len(self.demos)), len(self.demos)):
            demo = self.demos[index]
            if demo[key] != self.row[key] and len(found) < SHOTS:
                found.setdefault(demo[key], demo)
        return list(found.values())


def _first_line(answer: str) -> str:
    return answer.strip("\n").split("\n")[0]


def key_value(made: Made) -> Example:
    row = made.row
    shots = "".join(f"Key: {key}\nCorresponding value: {value}\n\n" for key, value in row["demos"][:SHOTS])
    score = functools.partial(substring, references=(row["answer"],))
    question = f"{JSON}\n\n{shots}Key: {row['question']}"
    return Example(row["context"], question, (f" {row['answer']}",), (), "Corresponding value:", score, made.form.room)


def _documents(row: Mapping[str, Any]) -> str:
    return "\n\n".join(f"Document (Title: {c['title']}): {c['text']}" for c in row["ctxs"])


def _rag_score(answer: str, references: tuple[str, ...]) -> float:
    return substring(_first_line(answer), references)


def rag(made: Made) -> Example:
    row = made.row
    shots = [f"{_documents(d)}\n\nQuestion: {d['question']}\nAnswer: {d['answers'][0]}" for d in made.draw("question")]
    document = RAG + "\n\n".join([*shots, _documents(row)])
    answers = tuple(row["answers"])
    score = functools.partial(_rag_score, references=answers)
    said = tuple(f" {answer}" for answer in answers)
    return Example(document, f"Question: {row['question']}", said, (), "Answer:", score, made.form.room)


def _passages(row: Mapping[str, Any]) -> str:
    title = lambda c: f" (Title: {c['title']})" if c.get("title") else ""  # noqa: E731
    return "\n\n".join(f"[ID: {c['id']}] Document{title(c)}: {c['text']}" for c in row["ctxs"])


def _order(row: Mapping[str, Any]) -> str:
    return " > ".join(c["id"] for c in sorted(row["ctxs"], key=lambda c: -c["label"]))


def _rank_score(answer: str, grades: Mapping[str, int]) -> float:
    return ndcg(ranking(_first_line(answer)), grades, 10)


def rank(made: Made) -> Example:
    row = made.row
    shots = [f"{_passages(d)}\n\nQuery: {d['query']}\nRanking: {_order(d)}" for d in made.draw("qid")]
    document = RANK + "\n\n".join([*shots, _passages(row)])
    score = functools.partial(_rank_score, grades={c["id"]: int(c["label"]) for c in row["ctxs"]})
    return Example(document, f"Query: {row['query']}", (f" {_order(row)}",), (), "Ranking:", score, made.form.room)


def _label_score(answer: str, reference: str) -> float:
    return exact(after(_first_line(answer), "label:"), (reference,))


def many_shot(made: Made) -> Example:
    """Labels are random numbers; examples come in rounds of one a class; the asked text is not among them."""
    text, label = made.form.fields
    classes: dict[int, list[str]] = {}
    for demo in made.demos:
        classes.setdefault(demo[label], [])
        if demo[text] != made.row[text]:
            classes[demo[label]].append(demo[text])
    number = dict(zip(sorted(classes), made.rng.sample(range(len(classes)), len(classes)), strict=True))
    pools = {c: made.rng.sample(texts, len(texts)) for c, texts in sorted(classes.items()) if texts}
    shots: list[str] = []

    def first(size: int) -> list[str]:
        while len(shots) < size:
            turn = len(shots) // len(pools)
            order = made.rng.sample(sorted(pools), len(pools))
            shots.extend(f"{pools[c][turn % len(pools[c])]}\nlabel: {number[c]}" for c in order)
        return shots[:size]

    query, reference = made.row[text], str(number[made.row[label]])
    document = lambda size: LABEL + "\n\n".join(first(size))  # noqa: E731
    room = made.form.room
    size = largest(made.name, lambda n: tokens_of(made.count, document(n), query, "label:") + room, made.length)
    score = functools.partial(_label_score, reference=reference)
    return Example(document(size), query, (f" {reference}",), (), "label:", score, room, {"shots": size})


def _cut(made: Made, before: str, text: str, question: str, prefix: str) -> str:
    """The document with as much of the text's beginning as fits."""
    words = text.split(" ")

    def document(size: int) -> str:
        return before + (text if size >= len(words) else " ".join(words[:size]) + OMITTED)

    room = made.form.room
    size = largest(
        made.name, lambda n: tokens_of(made.count, document(n), question, prefix) + room, made.length, len(words)
    )
    return document(size)


STORY = (
    "You are given a story, which can be either a novel or a movie script, and a question. Answer the question as "
    "concisely as you can, using a single phrase if possible.\n\n"
)
BOOK = (
    "You are given a story and a question. Answer the question as concisely as you can, using a single phrase if "
    "possible.\n\n"
)
CHOICE = (
    "You are given a story and a question with multiple choices. Choose the best answer from the options provided. "
    "Only one of the following options is correct, output the answer using one single letter (A, B, C, or D). Don't "
    "say anything else.\n\n"
)
PLOT = (
    "You are given a book and you are tasked to summarize it. Write a summary of about 1000 to 1200 words. Only "
    "write about the plot and characters of the story. Do not discuss the themes or background of the book. Do not "
    "provide any analysis or commentary.\n\n"
)
CASE = (
    "You are given the legal documents in a civil rights lawsuit, and you are tasked to summarize the case. Write a "
    "concise summary of one paragraph (200 to 250 words). The summary should contain a short description of the "
    "background, the parties involved, and the outcomes of the case.\n\nLegal documents:\n"
)


def _read(made: Made, before: str, text: str, question: str, prefix: str, answers: list[str]) -> Example:
    document = _cut(made, before, text, question, prefix)
    score = functools.partial(rouge_l, references=tuple(answers))
    return Example(document, question, tuple(f" {a}" for a in answers), (), prefix, score, made.form.room)


def narrative(made: Made) -> Example:
    row, answers = made.row, [answer["text"] for answer in made.row["answers"]]
    return _read(made, STORY, row["document"]["text"], f"Question: {row['question']['text']}", "Answer:", answers)


def novel_qa(made: Made) -> Example:
    row, shots = made.row, made.draw("id")
    shown = "\n\n".join(f"[story text]\nQuestion: {d['input']}\nAnswer: {d['answer'][0]}" for d in shots)
    before = f"{BOOK}For example:\n\n{shown}\n\nNow, read the following story:\n\n"
    return _read(made, before, row["context"], f"Question: {row['input']}", "Answer:", list(row["answer"]))


def _options(row: Mapping[str, Any]) -> tuple[str, str]:
    """The four options, and the letter of the right one."""
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", row["options"], strict=True))
    return lines, "ABCD"[row["options"].index(row["answer"][0])]


def _choice_score(answer: str, letter: str, text: str) -> float:
    """The letter alone, also after "Answer:"; or letter and option anywhere, the case ignored."""
    alone = exact(answer, (letter,)) or exact(after(answer, "Answer:"), (letter,))
    return float(bool(alone) or f"{letter}. {text}".lower() in answer.lower())


def choice(made: Made) -> Example:
    row, (options, letter) = made.row, _options(made.row)
    shots = [(d, *_options(d)) for d in made.draw("id")]
    shown = "\n\n".join(f"[story text]\nQuestion: {d['input']}\nOptions:\n{o}\nAnswer: {a}" for d, o, a in shots)
    before = f"{CHOICE}For example:\n\n{shown}\n\nNow, read the following story:\n\n"
    question = f"Question: {row['input']}\nOptions:\n{options}"
    document = _cut(made, before, row["context"], question, "Answer:")
    score = functools.partial(_choice_score, letter=letter, text=row["answer"][0])
    return Example(document, question, (f" {letter}",), (), "Answer:", score, made.form.room)


def plot(made: Made) -> Example:
    shown = "\n\n".join(f"[story text]\nSummary: {d['answer'][0].strip()}" for d in made.draw("id"))
    before = f"{PLOT}For example:\n\n{shown}\n\nNow, read the following story:\n\n"
    return _read(
        made, before, made.row["context"], "Now summarize the book.", "Summary:", [made.row["answer"][0].strip()]
    )


def case(made: Made) -> Example:
    text = "\n\n".join(made.row["sources"])
    return _read(made, CASE, text, "Now please summarize the case.", "Summary:", [made.row["summary/short"]])
