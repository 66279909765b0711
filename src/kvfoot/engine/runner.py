"""A batch's life on one pool: prefill sequence by sequence, decode all together, verify, release."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

import numpy as np
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.cache.kv import KVCache
from kvfoot.cache.paging import most_pages
from kvfoot.cache.trace import Trace
from kvfoot.core.budget import Cut, held
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method, Plan
from kvfoot.core.reading import Reader
from kvfoot.engine.clock import Clock
from kvfoot.engine.graph import Record
from kvfoot.engine.graphs import Graphs
from kvfoot.engine.replay import rewind, verified
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.span import Span
from kvfoot.engine.step import Step
from kvfoot.models.fusion import Fuse
from kvfoot.models.rotation import Rotation


@dataclass(frozen=True)
class Event:
    """Progress: "prefill" (done of total prompt tokens) or "token" (a generated one), of one sequence of the batch."""

    kind: Literal["prefill", "token"]
    sequence: int
    done: int
    total: int
    token: int = -1


Listener = Callable[[Event], None]


class Runner:
    """The model, a backend and a pool. stop: token ids that end a generation.

    record: what decode steps are recorded with (engine/graph.py), None: they are launched one by one. fuse: see
    Graphs.
    """

    def __init__(
        self,
        model: Any,
        backend: Backend,
        cache: KVCache,
        stop: frozenset[int],
        listener: Listener | None = None,
        record: Record | None = None,
        fuse: Fuse | None = None,
    ):
        self.model, self.backend, self.cache, self.stop = model, backend, cache, stop
        self.graphs = None if record is None else Graphs(model, backend, cache, record, fuse)
        self.rotation: Rotation | None = None
        self.tell: Listener = listener or (lambda event: None)

    def open(self, tokens: list[int], method: Method, plan: Plan, sampling: Sampling, index: int) -> Sequence:
        pool, geometry = self.cache.pool, self.cache.geometry
        dense = geometry.entry_bytes(pool.dtype.itemsize)
        entry = pool.kv_bytes + sum(p.dtype.itemsize * p.width for p in plan.planes)
        return Sequence(
            tokens=list(tokens),
            prompt=len(tokens),
            rows=self.cache.open(),
            method=method,
            plan=plan,
            trace=Trace(geometry, entry, dense, host_bytes=pool.host_entry_bytes),
            generator=sampling.generator(index),
            promised=np.zeros((geometry.layers, geometry.kv_heads), np.int64),
        )

    def fork(self, sequence: Sequence, sampling: Sampling, index: int) -> Sequence:
        """A second sequence that goes on from the same kept cache, with its own copy of the trace."""
        trace = replace(sequence.trace, passes=list(sequence.trace.passes))
        twin = Sequence(
            tokens=list(sequence.tokens),
            prompt=sequence.prompt,
            rows=self.cache.fork(sequence.rows),
            method=sequence.method,
            plan=sequence.plan,
            trace=trace,
            generator=sampling.generator(index),
            promised=sequence.promised.copy(),
            held=sequence.held,
        )
        twin.later, twin.rows_promised = sequence.later, sequence.rows_promised
        twin.reading, twin.begun = dict(sequence.reading), sequence.begun
        twin.past, twin.recent = dict(sequence.past), list(sequence.recent)
        return twin

    def prefill(self, sequence: Sequence, index: int = 0) -> Tensor:
        """Read the prompt in the plan's passes; logits fp32 [vocabulary] after its last token."""
        for part in sequence.passes:
            patch = sequence.tokens[slice(*part.patch)] if part.patch else []
            logits = self._pass(sequence, sequence.tokens[part.start : part.stop], part.cut, patch)
            self.tell(Event("prefill", index, part.stop, sequence.prompt))
        self.cache.settle()
        sequence.verify()
        sequence.freeze()
        sequence.held = sequence.rows.lens.copy()
        return logits

    def feed(self, sequence: Sequence, tokens: list[int], chunk: int | None) -> Tensor:
        """Read more tokens after the prompt, cut as the plan says for later passes; logits after the last one."""
        size = chunk or len(tokens)
        for start in range(0, len(tokens), size):
            logits = self._pass(sequence, tokens[start : start + size], sequence.later)
        sequence.tokens += tokens
        sequence.prompt += len(tokens)
        sequence.verify()
        return logits

    def _pass(self, sequence: Sequence, tokens: list[int], cut: Cut | None, patch: Many[int] = ()) -> Tensor:
        span = Span(sequence, 0, len(tokens), cut, patch=len(patch))
        return self.step([span]).forward(self.model, [*tokens, *patch])[0]

    def step(self, spans: list[Span]) -> Step:
        """A pass over these spans."""
        if self.rotation is None and any(span.unturned or span.unrotates for span in spans):
            self.rotation = Rotation(self.model)
        return Step(self.cache, self.backend, spans, self.rotation)

    def decode(
        self, sequences: list[Sequence], logits: Iterable[Tensor], limit: int, sampling: Sampling, clock: Clock
    ) -> None:
        """Generate up to `limit` tokens each, all sequences in one pass a step."""
        for i, (sequence, row) in enumerate(zip(sequences, logits, strict=True)):
            self._take(sequence, row, limit, sampling, i)
        clock.begun()
        replayed = self.graphs and self.graphs.open(sequences, limit, sampling)
        try:
            while live := [(i, s) for i, s in enumerate(sequences) if not s.done]:
                began, before = perf_counter(), sum(len(s.generated) for _, s in live)
                tokens = replayed.advance() if replayed else None
                if tokens is not None:
                    for i, sequence in live:
                        self._accept(sequence, tokens[i], limit, i)
                else:
                    for (i, sequence), rows in zip(live, self._advance([s for _, s in live], limit), strict=True):
                        for row in rows:
                            if not sequence.done:
                                self._take(sequence, row, limit, sampling, i)
                steps = max(1, (sum(len(s.generated) for _, s in live) - before) // len(live))
                clock.steps += [(perf_counter() - began) / steps] * steps
        finally:
            if replayed:
                replayed.close()
        for sequence in sequences:
            sequence.verify()

    def _advance(self, live: list[Sequence], limit: int) -> list[Tensor]:
        """One step: logits fp32 [tokens decided, vocabulary] of every sequence, which all have the same method."""
        method = live[0].method
        if isinstance(method, Reader) and method.verify:
            return [verified(self, s, min(method.verify, limit - len(s.generated))) for s in live]
        period = method.rectify if isinstance(method, Reader) else 0
        spans: list[Span] = []
        tokens: list[int] = []
        for s in live:
            again = period if period and s.steps == period else 1
            rewind(self, s, again - 1)
            anew = again == period
            spans.append(Span(s, len(tokens), len(tokens) + again, s.later, anew=anew))
            tokens += s.tokens[-again:]
        return list(self.step(spans).forward(self.model, tokens)[:, None])

    def _take(self, sequence: Sequence, logits: Tensor, limit: int, sampling: Sampling, index: int) -> None:
        sequence.generator.position = sequence.rows.seen
        self._accept(sequence, sampling.pick(logits, sequence.generator), limit, index)

    def _accept(self, sequence: Sequence, token: int, limit: int, index: int) -> None:
        sequence.tokens.append(token)
        sequence.generated.append(token)
        sequence.done = token in self.stop or len(sequence.generated) >= limit
        self.tell(Event("token", index, len(sequence.generated), limit, token))


def peak_pages(plan: Plan, geometry: Geometry, page_size: int, later: int) -> int:
    """Pages that a sequence owns at its worst moment, `later` tokens after the prompt included, by the plan.

    Layers commit one after the other: in a pass that cuts, rows that still grow meet rows that have not shrunk yet.
    """
    pages = [_pages(plan, lens, page_size) for lens in _lengths(plan, geometry, later)]
    return max(int(np.maximum(a, b).sum()) for a, b in zip([pages[0], *pages], pages, strict=False))


def session_pages(plan: Plan, geometry: Geometry, page_size: int, later: int) -> int:
    """Pages that a kept prompt and two forks of it, `later` tokens further, own at their worst moment.

    Two: a conversation, and the question or turn that is being answered.
    """
    *_, kept, after = _lengths(plan, geometry, later)
    rewrites = plan.later is not None or len(plan.planes) > 1 or any(geometry.windows)
    shared = 0 if rewrites else _pages(plan, kept, page_size, whole=True)
    own = _pages(plan, after, page_size) - shared
    return max(peak_pages(plan, geometry, page_size, 0), int((_pages(plan, kept, page_size) + 2 * own).sum()))


def _lengths(plan: Plan, geometry: Geometry, later: int) -> list[np.ndarray]:
    """Entries per row, int64 [layers, kv_heads], after each of the prompt's passes and `later` tokens after it."""
    lens = np.zeros((geometry.layers, geometry.kv_heads), np.int64)
    found = []
    steps: list[tuple[int, Cut | None]] = [(p.stop - p.start, p.cut) for p in plan.passes]
    for new, cut in [*steps, (later, plan.later)]:
        lens = held(cut, lens, new, geometry)
        found.append(lens)
    return found


def _pages(plan: Plan, lens: np.ndarray, page_size: int, whole: bool = False) -> np.ndarray:
    """Pages per row; of ragged rows per layer, the most they may be. whole: full ones, the least they may be."""
    if plan.ragged:
        least = (lens.sum(1) - (lens.shape[1] - 1) * (page_size - 1)) // page_size
        return least.clip(0) if whole else most_pages(lens, page_size)
    return lens // page_size if whole else -(-lens // page_size)
