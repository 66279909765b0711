"""A sweep: tasks x lengths x methods x knob values as cells, checked before anything is loaded or written."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kvfoot.core.budget import Budget
from kvfoot.core.compose import PLUS, Over
from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method
from kvfoot.core.reading import Reader
from kvfoot.core.registry import method as find_method
from kvfoot.core.registry import methods as all_methods
from kvfoot.core.results import Cell
from kvfoot.evaluate.forced import check_replay
from kvfoot.evaluate.protocol import Task

BUDGETS = ("keep", "budget")
"""Knobs of every method that takes a size; those of the others are their own options."""
BATCH, BATCH_TOKENS = 8, 16_384
"""Prompts of one cell that run together: at most, and context tokens of all of them."""


@dataclass(frozen=True)
class Variant:
    """A method with options, one value of a knob, and when it evicts; `knob` None for a method without one."""

    method: Method
    knob: str | None = None
    value: float | None = None
    evict: str | None = None

    def __str__(self) -> str:
        size = "" if self.knob is None else f" {self.knob}={self.value:g}"
        return f"{self.method.name}{size}{f' {self.evict}' if self.evict else ''}"

    @property
    def budget(self) -> Budget:
        if self.knob == "keep":
            return Budget.of(keep=self.value, evict=self.evict or "post")
        if self.knob == "budget":
            return Budget.of(budget=int(self.value or 0), evict=self.evict or "post")
        return Budget()


@dataclass(frozen=True)
class Sweep:
    """What `kvfoot eval` was asked for. Plain values only: it travels to worker processes as JSON.

    methods: names, or name:option=value:...; options: method -> option -> value, for all of its variants.
    lengths: context tokens; empty for tasks whose samples have a length of their own. batch: prompts at a time, None by
    length. whole: answers are written to their end also where following the reference would do.
    """

    model: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    knobs: dict[str, tuple[float, ...]] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    samples: int = 10
    seed: int = 0
    chunk: int | None = 512
    evict: tuple[str, ...] = ("post",)
    question: str = "before"
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    chat: bool | None = None
    batch: int | None = None
    whole: bool = False
    data: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    backend: str | None = None
    page_size: int = 16
    kv_memory: int | float | None = None

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Sweep":
        """From `plain`, JSON's lists and all."""
        tuples = {f.name for f in fields(cls) if str(f.type).startswith("tuple")}
        found: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in plain.items()}
        found["knobs"] = {k: tuple(v) for k, v in plain["knobs"].items()}
        return cls(**found)

    def chats(self, task: Task) -> bool | None:
        """The command's word before the task's."""
        return task.chat if self.chat is None else self.chat

    def variants(self) -> list[Variant]:
        """Every method at every value of the knobs it has. Raises UsageError for what does not exist."""
        if self.samples < 1:
            raise UsageError(f"--samples {self.samples}: give at least 1")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"--batch {self.batch}: give at least 1")
        if self.question not in ("before", "after"):
            raise UsageError(f"--question {self.question}: before or after the eviction")
        if self.chunk is not None and self.chunk < 1:
            raise UsageError(f"chunk={self.chunk}: give at least 1 token per chunk")
        for when in self.evict:
            Budget.of(evict=when)
        chosen = [self._method(text) for text in self.methods]
        self._check_names(chosen)
        found: list[Variant] = []
        for text, name, options in chosen:
            base = find_method(name, options)
            check_replay(base)
            reader = isinstance(base, Reader) and not isinstance(base, Over)
            takes = BUDGETS if base.budgeted else [*BUDGETS, *_options(name)] if reader else _options(name)
            own = [k for k in self.knobs if k in takes]
            if not own and base.budgeted:
                have = ", ".join(self.knobs) or "no --knob at all"
                raise UsageError(f"{text} needs a size and has none of the knobs given ({have}): --knob keep=0.5,0.25")
            for knob in own:
                values = self.knobs[knob]
                if knob in BUDGETS:
                    times: tuple[str | None, ...] = (None,) if reader else self.evict
                    found += [_checked(Variant(base, knob, v, at)) for v in values for at in times]
                else:
                    found += [Variant(find_method(name, {**options, knob: _number(v)}), knob, v) for v in values]
            if not own:
                found.append(Variant(base))
        return found

    def cells(self, tasks: Sequence[Task], revision: str, dtype: str) -> list[tuple[Cell, Variant]]:
        """In the order in which they are run: what can share a prefill lies together."""
        variants = self.variants()
        return [
            (
                Cell(
                    model=self.model,
                    revision=revision,
                    task=task.name,
                    category=task.category,
                    metric=task.metric,
                    length=length,
                    method=v.method.name,
                    options=v.method.options(),
                    knob=v.knob,
                    value=v.value,
                    evict=v.evict,
                    chunk=self.chunk,
                    seed=self.seed,
                    question=self.question,
                    dtype=dtype,
                ),
                v,
            )
            for task in tasks
            for length in self.lengths or (0,)
            for v in variants
        ]

    def fits(self, geometry: Geometry) -> None:
        """Raises UsageError for a length beyond the model's positions."""
        for length in self.lengths:
            if length < 1:
                raise UsageError(f"--lengths {length}: give at least 1 token")
            if length > geometry.positions:
                raise UsageError(f"--lengths {length} exceeds the model's {geometry.positions} positions")

    def _method(self, text: str) -> tuple[str, str, dict[str, str]]:
        """name:option=value:... -> (text, name, options)."""
        name, *pairs = text.split(":")
        options = dict(self.options.get(name, {}))
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals:
                raise UsageError(f"--methods {text}: write name:option=value, such as snapkv:window=32")
            options[key] = value
        find_method(name, options)
        return text, name, options

    def _check_names(self, chosen: list[tuple[str, str, dict[str, str]]]) -> None:
        """Knobs that nobody has, and options for a method that is not in the sweep."""
        names = {name for _, name, _ in chosen}
        for name in self.options:
            if name not in names:
                raise UsageError(f"--set {name}.…: {name} is not among --methods{did_you_mean(name, sorted(names))}")
        for knob, values in self.knobs.items():
            if not values:
                raise UsageError(f"--knob {knob}: give values, such as --knob {knob}=0.5,0.25")
            if len(set(values)) < len(values):
                raise UsageError(f"--knob {knob}: a value is given twice")
            if knob in BUDGETS:
                continue
            known = sorted(
                {k for name in names if PLUS not in name and not all_methods()[name].budgeted for k in _options(name)}
            )
            if knob not in known:
                which = f"none of {', '.join(sorted(names))} has a knob {knob!r}"
                raise UsageError(which + did_you_mean(knob, [*BUDGETS, *known]))


def _checked(variant: Variant) -> Variant:
    value = variant.value
    if variant.knob == "budget" and value is not None and value != int(value):
        raise UsageError(f"--knob budget={value:g}: give whole numbers of entries")
    _ = variant.budget
    return variant


def _options(name: str) -> list[str]:
    return [] if PLUS in name else [f.name for f in fields(all_methods()[name])]


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def block_size(sweep: Sweep, length: int) -> int:
    """Samples that are run, and leased, together."""
    return sweep.batch or max(1, min(BATCH, BATCH_TOKENS // max(length, 1)))
