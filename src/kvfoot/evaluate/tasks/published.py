"""The tasks that follow a publication, by name or by group, ready for a sweep.

A group stands for several names: `ruler`, `helmet_rag`, `longproc`. Data that is not made here lies in one folder:
FOLDER/books, FOLDER/longproc, FOLDER/helmet, FOLDER/longbench, or in FOLDER itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.evaluate.benchmarks import helmet_forms, longbench
from kvfoot.evaluate.longproc.task import NAMES as LONGPROC
from kvfoot.evaluate.longproc.task import longproc_task
from kvfoot.evaluate.perplexity import BookTail
from kvfoot.evaluate.protocol import Count, Example, Task
from kvfoot.evaluate.tasks.chainofkey import ChainOfKey
from kvfoot.evaluate.tasks.counting import CommonWords, FrequentWords
from kvfoot.evaluate.tasks.keyvalue import JsonKeyValue
from kvfoot.evaluate.tasks.manyshot import ManyShot
from kvfoot.evaluate.tasks.niah import Niah
from kvfoot.evaluate.tasks.number_in_noise import NoisePasskey
from kvfoot.evaluate.tasks.restate import Restate
from kvfoot.evaluate.tasks.tracking import VariableTracking

Make = Callable[[Path | None], Task]

MADE: dict[str, Make] = {
    "niah_single_1": lambda data: Niah("niah_single_1", "noise"),
    "niah_single_2": lambda data: Niah("niah_single_2", "books", folder=data),
    "niah_single_3": lambda data: Niah("niah_single_3", "books", value_kind="uuids", folder=data),
    "niah_multikey_1": lambda data: Niah("niah_multikey_1", "books", keys=4, folder=data),
    "niah_multikey_2": lambda data: Niah("niah_multikey_2", "needles"),
    "niah_multikey_3": lambda data: Niah("niah_multikey_3", "needles", key_kind="uuids", value_kind="uuids"),
    "niah_multivalue": lambda data: Niah("niah_multivalue", "books", values=4, folder=data),
    "niah_multiquery": lambda data: Niah("niah_multiquery", "books", keys=4, queries=4, folder=data),
    "vt": lambda data: VariableTracking(),
    "cwe": lambda data: CommonWords(),
    "fwe": lambda data: FrequentWords(),
    "passkey_noise": lambda data: NoisePasskey(),
    "json_kv": lambda data: JsonKeyValue(),
    "json_kv_numbers": lambda data: JsonKeyValue("json_kv_numbers", "number"),
    "chain-of-key": lambda data: ChainOfKey(),
    "icl": lambda data: ManyShot(folder=data),
    "restate": lambda data: Restate(),
    "perplexity": lambda data: BookTail(folder=data),
}
"""What is made here, from noise, word lists and the books of a folder."""

HELMET = tuple(f"helmet_{name}" for name in helmet_forms.NAMES)
LONGBENCH = tuple(f"longbench_{name}" for name in longbench.NAMES)
NAMES: tuple[str, ...] = (*MADE, *LONGPROC, *HELMET, *LONGBENCH)

GROUPS: dict[str, tuple[str, ...]] = {
    "niah": tuple(name for name in MADE if name.startswith("niah")),
    "ruler": tuple(MADE)[:11],
    "longproc": LONGPROC,
    "helmet": HELMET,
    "helmet_rag": ("helmet_nq", "helmet_triviaqa", "helmet_hotpotqa", "helmet_popqa"),
    "helmet_icl": tuple(f"helmet_{name}" for name in ("trec_coarse", "trec_fine", "banking77", "clinic150", "nlu")),
    "longbench": LONGBENCH,
}


def expand(names: list[str]) -> list[str]:
    """Groups as their names, the rest as given."""
    return [name for given in names for name in GROUPS.get(given, (given,))]


@dataclass(frozen=True)
class Asking:
    """A task whose answer the model begins itself: the beginning ends the question instead.

    For models that were trained to answer at once, such as kvfoot-recall, which a begun answer misleads.
    """

    task: Task

    @property
    def name(self) -> str:
        return f"{self.task.name}:question"

    @property
    def category(self) -> str:
        return self.task.category

    @property
    def metric(self) -> str:
        return self.task.metric

    @property
    def chat(self) -> bool | None:
        return self.task.chat

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        found = self.task.sample(index, length, seed, count)
        parts = [part for part in (found.question, found.prefix) if part]
        return replace(found, question="\n".join(parts), prefix="")


def published_task(name: str, data: Path | None = None) -> Task:
    """A task by its own name, not a group's; `UsageError` names the nearest ones. Data is read by the first sample.

    `NAME:question` is `Asking`; `NAME:partial` is LongProc's partial accuracy.
    """
    base, _, suffix = name.partition(":")
    if suffix == "question" and base in NAMES and base not in (*LONGPROC, "perplexity"):
        return Asking(published_task(base, data))
    if suffix and base in NAMES and base not in LONGPROC:
        raise UsageError(f"{base} has no form {suffix!r}: write {base} or {base}:question")
    if base in MADE:
        return MADE[base](data)
    if base in LONGPROC:
        return longproc_task(name, _part(data, "longproc"))
    if base in HELMET:
        return helmet_forms.helmet_task(name, _part(data, "helmet"))
    if base in LONGBENCH:
        return longbench.longbench_task(name, _part(data, "longbench"))
    raise UsageError(f"unknown task {name!r}{did_you_mean(name, [*NAMES, *GROUPS])}")


def _part(data: Path | None, name: str) -> Path | None:
    """The folder of one benchmark: `data`'s own of that name, else `data` itself."""
    return data / name if data and (data / name).is_dir() else data
