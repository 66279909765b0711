"""What trainings of head gates leave: heads.json, and heads.txt, the gates drawn."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvfoot.core.files import write_whole
from kvfoot.core.roles import HeadGates
from kvfoot.report.heatmap import as_text
from kvfoot.train.packing import Source
from kvfoot.train.passes import frozen
from kvfoot.train.run import Listener, RunOptions, Trainer, train


class OfHeads(ABC):
    """The part of a trainer that is about its result. model: its weights take no gradient."""

    model: Any
    windows = ": their gates would mean nothing"

    @abstractmethod
    def heads(self) -> HeadGates:
        """The gates as they are."""

    @contextmanager
    def running(self, checkpointing: bool) -> Iterator[None]:
        with frozen(self.model, checkpointing=checkpointing):
            yield

    def write(self, out: Path, record: dict[str, Any]) -> None:
        gates = recorded(self.heads(), record)
        gates.save(out / "heads.json")
        write_whole(out / "heads.txt", as_text(gates.soft.tolist(), gates.full().tolist()))

    def finish(self, out: Path, record: dict[str, Any]) -> None:  # noqa: B027 (nothing is left to do)
        """The last checkpoint is the result."""


def recorded(gates: HeadGates, record: dict[str, Any]) -> HeadGates:
    """With model and record."""
    return replace(gates, model=record["model"], training={k: x for k, x in record.items() if k != "model"})


def train_heads(trainer: Trainer, source: Source, options: RunOptions, listener: Listener | None = None) -> HeadGates:
    """`train` for a trainer of head gates -> the gates with their record."""
    record = train(trainer, source, options, listener)
    assert isinstance(trainer, OfHeads)
    return recorded(trainer.heads(), record)
