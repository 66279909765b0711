"""One scored answer, and the point of a sweep that it belongs to: what `evaluate` writes and `report` reads."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from kvfoot.core.records import RunRecord


@dataclass(frozen=True)
class Cell:
    """What all samples of one point of a sweep share.

    category, metric: of the task. length: context tokens asked for. knob, value: the option that is swept ("keep",
    "budget", a method's own), None and None for full attention. chunk: prompt tokens per pass, None for all.
    question: "before" or "after" the eviction of what the document holds. dtype: of the weights and the cache.
    """

    model: str
    revision: str
    task: str
    category: str
    metric: str
    length: int
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    knob: str | None = None
    value: float | None = None
    evict: str | None = None
    chunk: int | None = None
    seed: int = 0
    question: str = "before"
    dtype: str = ""

    @property
    def key(self) -> str:
        """The same text for the same cell, whatever the order of its options."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def is_full(self) -> bool:
        return self.method == "full"


@dataclass(frozen=True)
class SampleResult:
    """One sample under one cell.

    score: in [0, 1], or what the metric says. nll: nats per token of the reference, None where there is none.
    stepped: the model wrote or followed the answer token by token; otherwise one teacher-forced pass scored it.
    complete: `answer` is all that was written; otherwise it ends with its first wrong token (scored on tokens).
    figures: further numbers of the sample, such as depth in [0, 1], or per-position values.
    timeline: (tokens seen, entries stored in all rows) after every pass.
    """

    cell: Cell
    index: int
    prompt: str
    answer: str
    reference: str
    score: float
    nll: float | None
    stepped: bool
    record: RunRecord
    figures: dict[str, Any] = field(default_factory=dict)
    timeline: list[tuple[int, int]] = field(default_factory=list)
    complete: bool = True
