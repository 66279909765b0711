"""How well settings do on one prompt: fidelity to full attention, or the score of an answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kvfoot.core.errors import UsageError
from kvfoot.core.results import Cell, SampleResult
from kvfoot.engine.engine import Engine
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence as Running
from kvfoot.engine.shared import Member, Shared, groups
from kvfoot.evaluate.answers import Lane, follow, write
from kvfoot.evaluate.encode import Asked, ask
from kvfoot.evaluate.protocol import Task
from kvfoot.evaluate.sweep import Sweep, Variant
from kvfoot.evaluate.worker import Job, Worker

WAVE = 8
"""Settings whose answers are followed in one pass."""


@dataclass(frozen=True)
class Verdict:
    """One setting on one prompt. score: in [0, 1]; kl: nats per token from full attention, None where not measured."""

    score: float
    footprint: float
    kl: float | None = None


Fork = Callable[[Member], tuple[Running, Any]]
"""A member's kept prompt and the logits after it."""


class Judge(Protocol):
    def __call__(self, settings: Sequence[Variant], index: int) -> list[Verdict]:
        """settings[0] is full attention."""
        ...


def fitting(
    engine: Engine, sweep: Sweep, task: Task, variants: Sequence[Variant], room: int
) -> tuple[list[Variant], list[tuple[Variant, str]]]:
    """The settings that every prompt has room for, and the others with the reason. room: tokens of an answer."""
    metric = task.metric
    asked = [
        ask(engine.tokenizer, task.sample(i, 0, sweep.seed, lambda _: 0), metric, sweep.chats(task), sweep.question)
        for i in range(sweep.samples)
    ]
    lengths = {(len(a.prompt), len(a.after) + max(room, a.room)) for a in asked}
    good, left_out = [], []
    for v in variants:
        try:
            for prompt, later in lengths:
                engine.plan(engine.method(v.method), v.budget, prompt, sweep.chunk, later)
            good.append(v)
        except UsageError as error:
            left_out.append((v, str(error)))
    return good, left_out


class Answers:
    """The task's own score."""

    def __init__(self, engine: Engine, sweep: Sweep, task: Task):
        self.worker, self.sweep, self.task = Worker(engine, sweep), sweep, task

    def __call__(self, settings: Sequence[Variant], index: int) -> list[Verdict]:
        found: dict[int, SampleResult] = {}
        cell = Cell(self.sweep.model, "", self.task.name, self.task.category, self.task.metric, 0, "")
        wanted = {(place, index) for place in range(len(settings))}
        self.worker.run(Job(self.task, 0, [cell] * len(settings), settings, wanted), found.__setitem__)
        return [Verdict(found[i].score, found[i].record.footprint.kv) for i in range(len(settings))]


class Agreement:
    """Along full attention's own greedy continuation: the share of tokens that a setting would have written too.

    Teacher-forced, in one pass a setting, where the method allows it; the divergence is that of whole distributions.
    """

    def __init__(self, engine: Engine, sweep: Sweep, task: Task, tokens: int):
        self.engine, self.sweep, self.task, self.tokens = engine, sweep, task, tokens

    def __call__(self, settings: Sequence[Variant], index: int) -> list[Verdict]:
        example = self.task.sample(index, 0, self.sweep.seed, lambda _: 0)
        a = ask(self.engine.tokenizer, example, "agreement", self.sweep.chats(self.task), self.sweep.question)
        limit = self.tokens
        later = len(a.after) + limit
        members = [
            Member(method, self.engine.plan(method, v.budget, len(a.prompt), self.sweep.chunk, later))
            for v, method in ((v, self.engine.method(v.method)) for v in settings)
        ]
        found: dict[int, Verdict] = {}
        said: _Said | None = None
        for group in groups(members):  # the first one begins with full attention
            runner, fork = self._forks([members[i] for i in group], a, later)
            if said is None:
                said = self._listen(runner, *fork(members[0]), a, limit)
            for start in range(0, len(group), WAVE):
                wave = group[start : start + WAVE]
                for i, lane in zip(wave, self._follow(runner, [fork(members[i]) for i in wave], a, said), strict=True):
                    same = sum(x == y for x, y in zip(lane.picks, lane.reference, strict=True))
                    kv = lane.sequence.trace.footprint().kv
                    found[i] = Verdict(same / len(lane.reference), kv, sum(lane.kl) / len(lane.kl))
        return [found[i] for i in range(len(settings))]

    def _forks(self, own: list[Member], a: Asked, later: int) -> tuple[Runner, "Fork"]:
        """A runner, and how a member's kept prompt is had on it: from one prefill for all, or of its own."""
        if not own[0].shareable:
            alone = self.engine.runner([m.plan for m in own] * 2, later)
            return alone, lambda member: _alone(alone, member, a.prompt)
        shared = Shared(own, self.engine.geometry)
        runner = self.engine.runner([shared.plan] * (1 + 2 * min(WAVE, len(own))), later)
        base = shared.read(runner, a.prompt)
        return runner, lambda member: (shared.fork(runner, base, member), base.logits)

    def _listen(self, runner: Runner, kept: Running, logits: Any, a: Asked, limit: int) -> "_Said":
        """Full attention's continuation, and its distributions along it."""
        twin = runner.fork(kept, Sampling(), 0)
        own = Lane(twin, logits, a.after, [], limit)
        write(runner, [own], self.sweep.chunk)
        runner.cache.release(twin.rows)
        again = Lane(kept, logits, a.after, own.written, limit, keeps=True)
        follow(runner, [again], self.sweep.chunk)
        runner.cache.release(kept.rows)
        return _Said(own.written, torch.cat(again.spoken))

    def _follow(self, runner: Runner, kept: list[tuple[Running, Any]], a: Asked, said: "_Said") -> list[Lane]:
        lanes = [Lane(s, logits, a.after, said.tokens, self.tokens, against=said.spoken) for s, logits in kept]
        follow(runner, lanes, self.sweep.chunk)
        for lane in lanes:
            runner.cache.release(lane.sequence.rows)
        return lanes


@dataclass(frozen=True)
class _Said:
    tokens: list[int]
    spoken: torch.Tensor


def _alone(runner: Runner, member: Member, prompt: list[int]) -> tuple[Running, Any]:
    sequence = runner.open(prompt, member.method, member.plan, Sampling(), 0)
    return sequence, runner.prefill(sequence)
