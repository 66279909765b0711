"""One engine at work on a sweep: blocks of samples, every cell of a task and length on a shared prefill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp
from time import perf_counter
from typing import Any

from kvfoot.core.records import Memory, RunRecord, Timings
from kvfoot.core.results import Cell, SampleResult
from kvfoot.engine.account import record
from kvfoot.engine.clock import Clock
from kvfoot.engine.engine import Engine
from kvfoot.engine.prompts import text as decoded
from kvfoot.engine.replay import check
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence as Running
from kvfoot.engine.shared import Base, Member, Shared, groups
from kvfoot.evaluate.answers import Lane, follow, one_pass, write
from kvfoot.evaluate.encode import Asked, ask, counter, without_template
from kvfoot.evaluate.protocol import LIKELIHOOD, Task
from kvfoot.evaluate.sweep import Sweep, Variant

BUCKET = 256
"""Tokens of a reference's stretch whose mean NLL is a figure of the sample, where there is more than one stretch."""

Sink = Callable[[int, SampleResult], None]
"""Takes a cell's place in the job and a finished sample."""


@dataclass
class Job:
    """Samples of one task and length under several cells. wanted: (cell's place, sample index) pairs."""

    task: Task
    length: int
    cells: Sequence[Cell]
    variants: Sequence[Variant]
    wanted: set[tuple[int, int]]


@dataclass
class Kept:
    """A sample's prompt, kept by one method: what its answers fork from."""

    index: int
    sequence: Running
    logits: Any
    seconds: float


class Worker:
    """Runs jobs of one sweep on one engine."""

    def __init__(self, engine: Engine, sweep: Sweep):
        self.engine, self.sweep = engine, sweep
        self.spent = 0.0  # seconds of the model's own work

    def run(self, job: Job, put: Sink) -> None:
        """Every wanted sample goes to `put` as soon as it is scored."""
        asked = self.encode(job)
        together: dict[tuple[int, ...], list[int]] = {}
        alone: dict[int, list[int]] = {}
        for i, a in asked.items():
            places = [c for c in range(len(job.cells)) if (c, i) in job.wanted]
            members = [self.member(job.variants[c], a) for c in places]
            for group in groups(members):
                if members[group[0]].shareable:
                    together.setdefault(tuple(places[g] for g in group), []).append(i)
                else:
                    alone.setdefault(places[group[0]], []).append(i)
        for places_, indices in together.items():
            self._share(job, places_, {i: asked[i] for i in indices}, put)
        for c, indices in alone.items():
            self._alone(job, c, {i: asked[i] for i in indices}, put)

    def encode(self, job: Job) -> dict[int, Asked]:
        sweep, tokenizer = self.sweep, self.engine.tokenizer
        count = counter(tokenizer)
        found = {}
        length = without_template(tokenizer, job.length, sweep.chats(job.task))
        for i in sorted({i for _, i in job.wanted}):
            example = job.task.sample(i, length, sweep.seed, count)
            found[i] = ask(tokenizer, example, job.task.metric, sweep.chats(job.task), sweep.question)
        return found

    def member(self, variant: Variant, a: Asked) -> Member:
        method = self.engine.method(variant.method)
        check(method, self.engine.geometry, Sampling())
        return Member(method, self.engine.plan(method, variant.budget, len(a.prompt), self.sweep.chunk, a.room))

    def _share(self, job: Job, places: tuple[int, ...], asked: dict[int, Asked], put: Sink) -> None:
        """One prefill a sample, a fork of it per cell."""
        members = {i: [self.member(job.variants[c], a) for c in places] for i, a in asked.items()}
        shared = {i: Shared(m, self.engine.geometry) for i, m in members.items()}
        later = max(a.room for a in asked.values())
        # at once: the prompts, one cell's forks of them, and a fork of each of those to answer on
        runner = self.engine.runner([s.plan for s in shared.values()] * 3, later)
        began = perf_counter()
        bases: dict[int, Base] = {i: shared[i].read(runner, a.prompt, i) for i, a in asked.items()}
        self.spent += perf_counter() - began
        for n, c in enumerate(places):
            kept = []
            began = perf_counter()
            for i, base in bases.items():
                start = perf_counter()
                sequence = shared[i].fork(runner, base, members[i][n], i)
                kept.append(Kept(i, sequence, base.logits, base.seconds + perf_counter() - start))
            self.spent += perf_counter() - began
            self._score(job, c, runner, kept, asked, put)
        for base in bases.values():
            runner.cache.release(base.sequence.rows)

    def _alone(self, job: Job, c: int, asked: dict[int, Asked], put: Sink) -> None:
        """A method that evicts while the prompt is read: a prefill of its own."""
        members = {i: self.member(job.variants[c], a) for i, a in asked.items()}
        runner = self.engine.runner([m.plan for m in members.values()] * 2, max(a.room for a in asked.values()))
        kept = []
        began = perf_counter()
        for i, member in members.items():
            start = perf_counter()
            sequence = runner.open(asked[i].prompt, member.method, member.plan, Sampling(), i)
            logits = runner.prefill(sequence, i)
            kept.append(Kept(i, sequence, logits, perf_counter() - start))
        self.spent += perf_counter() - began
        self._score(job, c, runner, kept, asked, put)

    def _score(self, job: Job, c: int, runner: Runner, kept: list[Kept], asked: dict[int, Asked], put: Sink) -> None:
        """All samples of one cell, then their pages are given back."""
        cell, variant, chunk = job.cells[c], job.variants[c], self.sweep.chunk
        followed = self._lanes(runner, [k for k in kept if asked[k.index].reference], asked, follow, chunk)
        wanted = [k for k in kept if self._writes(asked[k.index], cell.metric)]
        written = self._lanes(runner, wanted, asked, write, chunk)
        for k in kept:
            a = asked[k.index]
            result = self._result(cell, variant, runner, k, a, followed.get(k.index), written.get(k.index))
            put(c, result)
        for k in kept:
            runner.cache.release(k.sequence.rows)

    def _writes(self, a: Asked, metric: str) -> bool:
        return metric != LIKELIHOOD and (self.sweep.whole or not a.on_tokens)

    def _lanes(
        self, runner: Runner, kept: list[Kept], asked: dict[int, Asked], what: Callable[..., None], chunk: int | None
    ) -> dict[int, Lane]:
        lanes = {}
        began = perf_counter()
        for k in kept:
            a = asked[k.index]
            fork = runner.fork(k.sequence, Sampling(), k.index)
            lanes[k.index] = Lane(fork, k.logits, a.after, a.reference, a.limit)
        if lanes:
            what(runner, list(lanes.values()), chunk)
        for lane in lanes.values():
            runner.cache.release(lane.sequence.rows)
        self.spent += perf_counter() - began
        return lanes

    def _result(
        self, cell: Cell, variant: Variant, runner: Runner, k: Kept, a: Asked, along: Lane | None, own: Lane | None
    ) -> SampleResult:
        lane = own or along
        assert lane is not None, "a sample has a reference, or its answer is written"
        tokens = own.written if own else lane.greedy
        answer = "" if cell.metric == LIKELIHOOD else decoded(self.engine.tokenizer, tokens)
        nll = sum(along.nll) / len(along.nll) if along else None
        figures = dict(a.example.figures) | {"prompt_tokens": len(a.prompt) + len(a.after)}
        if along:
            figures |= {"matched": along.matched, "reference_tokens": len(along.reference)}
        if along and len(along.nll) > BUCKET:
            figures["nll_by_position"] = [
                [s, min(s + BUCKET, len(along.nll)), round(_mean(along.nll[s : s + BUCKET]), 5)]
                for s in range(0, len(along.nll), BUCKET)
            ]
        return SampleResult(
            cell=cell,
            index=k.index,
            prompt=a.text,
            answer=answer,
            reference=a.example.reference,
            score=_score(cell.metric, a, along, own, answer),
            nll=None if nll is None else round(nll, 5),
            stepped=own is not None or not one_pass(lane.sequence),
            record=self._record(runner, variant, k, a, lane),
            figures=figures,
            timeline=[(p.seen, int(p.before.sum())) for p in lane.sequence.trace.passes]
            + [(int(lane.sequence.rows.seen), int(lane.sequence.rows.lens.sum()))],
            complete=own is not None or cell.metric == LIKELIHOOD or lane.matched == len(lane.reference),
        )

    def _record(self, runner: Runner, variant: Variant, k: Kept, a: Asked, lane: Lane) -> RunRecord:
        """The sample's own record: its memory is what its rows alone would take, whatever ran beside it."""
        engine, sequence = self.engine, lane.sequence
        clock = Clock(prefill=k.seconds, first=k.seconds, steps=lane.seconds)
        config = engine.config(variant.method, variant.budget, self.sweep.chunk, a.limit, Sampling())
        config |= {"chat": a.chat, "question": self.sweep.question}
        found = record(runner, [sequence], clock, config, engine.revision, self.sweep.seed)
        page, size = sequence.trace.entry_bytes, engine.page_size
        held = sequence.held if sequence.held is not None else sequence.rows.lens
        entries = int((-(-held // size)).sum()) * size
        most = max(int((-(-(p.before + p.n) // size)).sum()) for p in sequence.trace.passes) * size
        memory = Memory(
            held_bytes=entries * page,
            peak_bytes=most * page,
            dense_bytes=found.memory.dense_bytes,
            host_held_bytes=entries * sequence.trace.host_bytes,
            host_peak_bytes=most * sequence.trace.host_bytes,
            side_bytes=found.memory.side_bytes,
        )
        each = 1e3 * _mean(lane.seconds) if lane.seconds else None
        return replace(found, memory=memory, timings=Timings(k.seconds, k.seconds, each))


def _score(metric: str, a: Asked, along: Lane | None, own: Lane | None, answer: str) -> float:
    if metric == LIKELIHOOD:
        assert along is not None
        return exp(-_mean(along.nll))
    if not a.on_tokens:
        assert a.example.score is not None, f"a task whose metric is {metric} scores its answers itself"
        return float(a.example.score(answer))
    assert along is not None
    matched = along.matched if own is None else _leading(own.written, a.reference)
    if metric == "exact":
        return float(matched == len(a.reference))
    return sum(end <= matched for end in a.ends) / len(a.ends)


def _leading(written: list[int], reference: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(written, reference, strict=False)) if x != y), len(written))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
