"""Tasks by name, or a user's own: a JSONL file of `prompt` and `answers`, or a Python file with a `task`."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.evaluate import tasks as built_in
from kvfoot.evaluate.protocol import Count, Example, Task
from kvfoot.evaluate.scorers import SCORERS, Scorer
from kvfoot.evaluate.tasks.corpus import Corpus, read_corpus, read_vocabulary
from kvfoot.evaluate.tasks.published import GROUPS, NAMES, expand, published_task

FIELDS = ("prompt", "question", "answers", "prefix", "metric", "max_new_tokens")


def find(names: Sequence[str], data: str | None = None) -> list[Task]:
    """Tasks by name, group or path; data: the folder of books and words. Raises UsageError; files are read here."""
    found: list[Task] = []
    corpus: Corpus | None = None
    for name in expand(list(names)):
        base = name.partition(":")[0]
        if name.endswith(".jsonl"):
            found.append(Lines.read(Path(name)))
        elif name.endswith(".py"):
            found.append(own(Path(name)))
        elif name in built_in.TASKS:
            corpus = corpus or _corpus(data)
            found.append(Generated(built_in.TASKS[name], corpus))
        elif base in NAMES:
            found.append(published_task(name, None if data is None else Path(data)))
        else:
            raise UsageError(f"unknown task {name!r}{did_you_mean(name, [*built_in.TASKS, *NAMES, *GROUPS])}")
    twice = {t.name for t in found if [x.name for x in found].count(t.name) > 1}
    if twice:
        raise UsageError(f"--tasks: {', '.join(sorted(twice))} is given twice")
    return found


@dataclass(frozen=True)
class Generated:
    """A built-in task: its first question."""

    task: built_in.Task
    corpus: Corpus
    chat: bool | None = None

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def category(self) -> str:
        return self.task.category

    @property
    def metric(self) -> str:
        return self.task.metric

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        made = self.task.sample(self.corpus, count, length, seed, index)
        turn = made.turns[0]
        return Example(
            document=made.context,
            question=turn.question,
            answers=(turn.answer,),
            units=turn.units,
            figures=dict(made.metadata),
        )


@dataclass(frozen=True)
class Lines:
    """A JSONL file: a sample a line, with `prompt` and `answers` (a text or a list; without, there is no score)."""

    name: str
    rows: tuple[dict[str, Any], ...]
    metric: str = "contains"
    category: str = "own"
    chat: bool | None = None

    @classmethod
    def read(cls, path: Path, *, answers: bool = True, metric: str | None = None) -> "Lines":
        """answers: every line has to have some. Raises UsageError, naming the line."""
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}: give a JSONL file") from None
        rows = [_line(path, i, line, answers) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        if not rows:
            raise UsageError(f'{path}: no samples: a line is {{"prompt": ..., "answers": [...]}}')
        named = {row["metric"] for row in rows if "metric" in row}
        if len(named) > 1:
            raise UsageError(f"{path}: one metric a file, not {', '.join(sorted(named))}")
        chosen = metric or next(iter(named), "contains")
        _scorer(chosen)
        several = next((i for i, row in enumerate(rows, 1) if chosen == "exact" and len(row["answers"]) > 1), None)
        if several:
            raise UsageError(f"{path}: sample {several} has several answers: exact takes one, contains any")
        return cls(path.stem, tuple(rows), chosen)

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        """length and seed are of no effect: a file's samples are as they are."""
        if index >= len(self.rows):
            raise UsageError(f"{self.name} has {len(self.rows)} samples: --samples {index + 1} is too many")
        row = self.rows[index]
        answers = tuple(row["answers"])
        return Example(
            document=row["prompt"],
            question=row.get("question", ""),
            answers=answers,
            prefix=row.get("prefix", ""),
            score=None if self.metric == "exact" else partial(_scored, _scorer(self.metric), answers),
            room=row.get("max_new_tokens", 128),
        )


def _scorer(metric: str) -> Scorer:
    """`exact` is the one on tokens here, whatever a scorer of texts of that name does."""
    if metric not in SCORERS:
        raise UsageError(f"unknown metric {metric!r}{did_you_mean(metric, list(SCORERS))}")
    return SCORERS[metric]


def _scored(scorer: Scorer, accepted: Sequence[str], answer: str) -> float:
    return scorer(answer, accepted)


def own(path: Path) -> Task:
    """The `task` of a Python file. Raises UsageError where there is none."""
    if not path.is_file():
        raise UsageError(f"--tasks {path}: no such file: give a .jsonl or .py file, or a task's name")
    spec = importlib.util.spec_from_file_location(f"kvfoot_task_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{path}, line {error.lineno}: {error.msg}") from None
    task: Any = getattr(module, "task", None)
    missing = [name for name in ("name", "category", "metric", "chat", "sample") if not hasattr(task, name)]
    if missing:
        raise UsageError(f"{path}: its `task` lacks {', '.join(missing)}: see kvfoot.evaluate.protocol.Task")
    return cast(Task, task)


def _line(path: Path, number: int, line: str, answers: bool) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise UsageError(f'{where}: a line is {{"prompt": "...", "answers": [...]}}, with a prompt that is not empty')
    strange = [key for key in row if key not in FIELDS]
    if strange:
        raise UsageError(f"{where}: unknown field {strange[0]!r} (known: {', '.join(FIELDS)})")
    wrong = [key for key in ("question", "prefix", "metric") if not isinstance(row.get(key, ""), str)]
    if wrong:
        raise UsageError(f"{where}: {wrong[0]}={row[wrong[0]]!r} is not a text")
    given = row.get("answers", [])
    row["answers"] = [given] if isinstance(given, str) else given
    texts = isinstance(row["answers"], list) and all(isinstance(a, str) and a for a in row["answers"])
    if not texts or (answers and not row["answers"]):
        raise UsageError(f"{where}: answers is a text, or a list of at least one")
    room = row.get("max_new_tokens", 1)
    if not isinstance(room, int) or isinstance(room, bool) or room < 1:
        raise UsageError(f"{where}: max_new_tokens={room!r}: give a number of at least 1")
    return row


def _corpus(data: str | None) -> Corpus:
    """Books and words of the development side; the package itself ships the words alone."""
    if data is not None:
        return read_corpus(data, "dev")
    return Corpus("dev", {}, read_vocabulary(Path(str(files("kvfoot"))) / "data", "dev", towns=False))
