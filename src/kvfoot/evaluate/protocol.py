"""What a sweep asks of a task: samples as text, and how an answer is scored. A user's own task is a file of these.

Two metrics are scored on the tokens of the reference, so that one teacher-forced pass equals a greedy generation:
`exact` (the answer begins with the whole reference) and `prefix` (the share of its units before the first wrong one).
`likelihood` writes no answer: its score is exp(-NLL) of the reference. Every other metric is the example's own `score`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Count = Callable[[list[str]], int]
"""Tokens of a list of texts, added up, by the tokenizer of the model at hand."""
TOKEN_METRICS = ("exact", "prefix")
LIKELIHOOD = "likelihood"


@dataclass(frozen=True)
class Example:
    """One sample as text.

    document, question: the user's turn; the question is read before eviction, or after it where a sweep says so.
    answers: accepted ones; the NLL is that of the first. units: the first answer in pieces, for `prefix`.
    prefix: the beginning of the answer, which the model is given; where it is not empty, an answer begins with a space.
    score: of an answer's text, where the metric is not one of tokens. room: most tokens of a generated answer.
    figures: further numbers of the sample, such as depth in [0, 1].
    """

    document: str
    question: str = ""
    answers: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    prefix: str = ""
    score: Callable[[str], float] | None = None
    room: int = 128
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The answer whose NLL is reported; empty where there is none."""
        return "".join(self.units) if self.units else next(iter(self.answers), "")


class Task(Protocol):
    """`name`, `category` and `metric` go into a cell; chat None: the template of a model that has one."""

    @property
    def name(self) -> str: ...

    @property
    def category(self) -> str: ...

    @property
    def metric(self) -> str: ...

    @property
    def chat(self) -> bool | None: ...

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        """The `index`-th example of at most `length` tokens, answer and chat template included.

        A function of its arguments only. Raises UsageError where nothing fits, or where there is no such example.
        """
        ...
