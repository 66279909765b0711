"""How faithful a method is to full attention, without reference answers.

Full attention writes a greedy continuation of a prompt once. Each method is then led along it, teacher-forced, and
compared at every token: does it choose the same one, and how far is its distribution (Kullback-Leibler, nats)?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kvfoot.core.budget import Budget
from kvfoot.core.hooks import Method
from kvfoot.core.records import RunRecord
from kvfoot.core.registry import method as find_method
from kvfoot.engine.account import record
from kvfoot.engine.clock import Clock
from kvfoot.engine.engine import CHUNK, Engine
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.evaluate.forced import follow


@dataclass(frozen=True)
class Baseline:
    """What full attention wrote after a prompt, at most `new` tokens. logs: log-probabilities fp32 [G, vocabulary]."""

    prompt: list[int]
    continuation: list[int]
    logs: Tensor
    chunk: int | None
    record: RunRecord


@dataclass(frozen=True)
class Fidelity:
    """agreement: share of the G tokens where the method's argmax is full attention's. kl: mean nats, full || method.

    first: index of the first other token, None where all agree. nll: mean nats of the continuation under the method.
    """

    agreement: float
    kl: float
    first: int | None
    nll: float
    record: RunRecord


def baseline(engine: Engine, prompt: list[int], new: int, *, chunk: int | None = CHUNK) -> Baseline:
    """Full attention's own greedy continuation, its end token included. Raises UsageError where it does not fit."""
    full, sampling = find_method("full"), Sampling()
    plan = engine.plan(full, Budget(), len(prompt), chunk, new)
    runner = engine.runner([plan], new)
    sequence = runner.open(prompt, full, plan, sampling, 0)
    clock = Clock()
    logits = runner.prefill(sequence)
    clock.filled(runner.cache.pool.held_bytes)
    clock.begun()
    rows, continuation = [logits.float().log_softmax(0)], [int(logits.argmax())]
    while len(continuation) < new and continuation[-1] not in runner.stop:
        (row,) = follow(runner, sequence, continuation[-1:])
        rows.append(row[0].float().log_softmax(0))
        continuation.append(int(row[0].argmax()))
    whole = _record(engine, runner, sequence, clock, full, Budget(), chunk, continuation)
    return Baseline(list(prompt), continuation, torch.stack(rows), chunk, whole)


@torch.inference_mode()
def fidelity(engine: Engine, base: Baseline, method: Method, budget: Budget | None = None) -> Fidelity:
    """A method along a baseline, chunks as there: a prefill, then one pass where nothing happens at decode."""
    budget = budget or Budget()
    new = len(base.continuation)
    plan = engine.plan(method, budget, len(base.prompt), base.chunk, new)
    runner = engine.runner([plan], new)
    sequence = runner.open(base.prompt, method, plan, Sampling(), 0)
    clock = Clock()
    first = runner.prefill(sequence)
    clock.filled(runner.cache.pool.held_bytes)
    clock.begun()
    same: list[bool] = []
    kl = nll = 0.0
    wanted = torch.tensor(base.continuation, device=base.logs.device)
    for logits in _all(first, follow(runner, sequence, base.continuation[:-1])):
        at = slice(len(same), len(same) + len(logits))
        logs = logits.float().log_softmax(1)
        kl += float((base.logs[at].exp() * (base.logs[at] - logs)).sum())
        nll -= float(logs.gather(1, wanted[at, None]).sum())
        same += (logs.argmax(1) == wanted[at]).tolist()
    whole = _record(engine, runner, sequence, clock, method, budget, base.chunk, base.continuation)
    missed = None if all(same) else same.index(False)
    return Fidelity(sum(same) / new, kl / new, missed, nll / new, whole)


def _all(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first[None]
    yield from rest


def _record(
    engine: Engine, runner: Runner, sequence: Sequence, clock: Clock, method: Method, budget: Budget,
    chunk: int | None, continuation: list[int],
) -> RunRecord:  # fmt: skip
    sequence.generated = list(continuation)
    config = engine.config(method, budget, chunk, len(continuation), Sampling()) | {"chat": False, "question": None}
    found = record(runner, [sequence], clock, config, engine.revision, 0)
    runner.cache.release(sequence.rows)
    return found
