"""The recorded decode steps of one pool: which suits a batch, and what a batch does between two of them."""

from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

from kvfoot.attention.backend import Backend
from kvfoot.cache.kv import KVCache
from kvfoot.core.reading import Reader
from kvfoot.engine.graph import Record, bucket
from kvfoot.engine.graphable import why_eager
from kvfoot.engine.ledger import limits
from kvfoot.engine.resident import QUIET, Resident
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.models.fusion import Fuse, Fusion

KEPT = 4
"""Recorded batches that a pool keeps: each has the activations of a step to itself."""


class Graphs:
    """Steps of a bucket of sequences, of one method and one sampling, recorded once and kept while the pool lives."""

    def __init__(self, model: Any, backend: Backend, cache: KVCache, record: Record, fuse: Fuse | None = None):
        """fuse: small operations around attention that kernels do in place of the model (models/fusion.py)."""
        self.fusion = None if fuse is None else Fusion(model, fuse)
        self.model, self.backend, self.cache, self.record = model, backend, cache, record
        self.kept: list[tuple[Any, Resident]] = []
        self.steps = 0

    def open(self, sequences: Many[Sequence], limit: int, sampling: Sampling) -> "Batch | None":
        """What replays the steps of these sequences, `limit` tokens each; None where their method has to be stepped."""
        plan, method = sequences[0].plan, sequences[0].method
        if any(s.method != method for s in sequences) or why_eager(method, plan) is not None:
            return None
        if any((s.plan.planes, s.later is None) != (plan.planes, sequences[0].later is None) for s in sequences):
            return None  # a method may plan to evict from long prompts alone: a recording does the same for all
        if any((s.rows.lens > limits(s)).any() for s in sequences):
            return None  # a row that has to shrink by more than one entry
        return Batch(self, sequences, limit, sampling)

    def suiting(self, sequences: Many[Sequence], room: int, sampling: Sampling) -> Resident:
        """A recorded step, or a new one to be recorded."""
        size, first = bucket(len(sequences)), sequences[0]
        key = (size, first.method, tuple(p.name for p in first.plan.planes), replace(sampling, seed=0))
        for i, (own, resident) in enumerate(self.kept):
            if own == key and resident.holds(sequences, room):
                self.kept.append(self.kept.pop(i))
                return resident
        resident = Resident(
            self.model, self.backend, self.cache, sequences, size, room, sampling, self.record, self.fusion
        )
        self.kept = [*self.kept[max(0, len(self.kept) + 1 - KEPT) :], (key, resident)]
        return resident


class Batch:
    """Sequences that decode together: replayed where their step is one that can be, given back to the cache else."""

    def __init__(self, graphs: Graphs, sequences: Many[Sequence], limit: int, sampling: Sampling):
        self.graphs, self.sequences, self.limit, self.sampling = graphs, sequences, limit, sampling
        self.resident: Resident | None = None
        self.places: list[int] = []

    def advance(self) -> dict[int, int] | None:
        """One step of all that are not done: place in the batch -> token. None: this step has to be launched.

        Raises PoolExhausted before the step, NotFinite after it.
        """
        live = [i for i, s in enumerate(self.sequences) if not s.done]
        kind = self._kind([self.sequences[i] for i in live])
        if kind is None:
            self.close()
            return None
        if self.resident is None:
            some = [self.sequences[i] for i in live]
            room = max(self.limit - len(s.generated) for s in some)
            resident = self.graphs.suiting(some, room, self.sampling)
            resident.attach(some)
            self.resident, self.places = resident, live
        ledger = self.resident.ledger
        assert ledger is not None
        for b, i in enumerate(self.places):
            if self.sequences[i].done:
                ledger.retire(b)
        self.resident.step(kind)
        self.graphs.steps += 1
        return dict(zip(self.places, self.resident.tokens(), strict=True))

    def close(self) -> None:
        """The rows are the cache's again."""
        if self.resident is not None:
            self.resident.detach()
            self.resident = None

    def _kind(self, live: Many[Sequence]) -> str | None:
        """The kind of step that all of them are about to take."""
        method = live[0].method
        if not isinstance(method, Reader):
            return QUIET
        found = {self._phase(method, s) for s in live}
        return found.pop() if len(found) == 1 else None

    def _phase(self, method: Reader, s: Sequence) -> str | None:
        open_layers = s.trace.geometry.open_layers
        n = int(s.rows.lens[open_layers].min()) + 1
        if s.begun is None or s.plan.reads is None:
            return None
        return method.phase(s.steps, n, s.plan.reads)
