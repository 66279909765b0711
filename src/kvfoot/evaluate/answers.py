"""Answers on kept caches: followed along a reference, in one pass or token by token, or written greedily.

Where a method evicts nothing after the prompt and reads all it stores, one teacher-forced pass over the reference gives
every token the logits that a decode step would: the greedy answer is the reference exactly if each token is the argmax.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from kvfoot.engine.runner import Runner
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.span import Span
from kvfoot.evaluate.forced import steps_at_decode

PASS = 1024
"""Most tokens of a teacher-forced pass: their logits are held at once."""


@dataclass
class Lane:
    """A kept cache with what is asked of it. logits: fp32 [vocabulary], after the last token that it has read.

    nll: nats of each reference token; picks: the argmax in its place. written: a greedy answer. seconds: per step.
    keeps: remember the log-probabilities [reference, vocabulary] in `spoken`; against: others', from which kl is the
    divergence, in nats per token.
    """

    sequence: Sequence
    logits: Tensor
    after: list[int]
    reference: list[int]
    limit: int
    nll: list[float] = field(default_factory=list)
    picks: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    keeps: bool = False
    spoken: list[Tensor] = field(default_factory=list)
    against: Tensor | None = None
    kl: list[float] = field(default_factory=list)

    @property
    def matched(self) -> int:
        """Reference tokens before the first that a greedy decode would not have written."""
        pairs = zip(self.picks, self.reference, strict=True)
        return next((i for i, (pick, token) in enumerate(pairs) if pick != token), len(self.reference))

    @property
    def greedy(self) -> list[int]:
        """The greedy answer as far as the reference tells: up to and with its first other token."""
        n = self.matched
        return self.reference[:n] + self.picks[n : n + 1]


def one_pass(sequence: Sequence) -> bool:
    """Whether one pass over the reference stands for decoding it: never where decode evicts or reads a part."""
    return not steps_at_decode(sequence)


def follow(runner: Runner, lanes: Many[Lane], chunk: int | None) -> None:
    """NLL and argmax along the reference, in one pass where that is the same as decoding, else stepped."""
    forced = [lane for lane in lanes if one_pass(lane.sequence)]
    stepped = [lane for lane in lanes if not one_pass(lane.sequence)]
    if forced:
        _force(runner, forced)
    if stepped:
        _step_along(runner, stepped, chunk)
    for lane in lanes:
        lane.sequence.generated = list(lane.reference)
        lane.sequence.verify()


def write(runner: Runner, lanes: Many[Lane], chunk: int | None) -> None:
    """Greedy answers of at most `limit` tokens, all lanes in one pass a step."""
    _read_after(runner, lanes, chunk)
    live = list(lanes)
    while True:
        for lane in live:
            lane.written.append(int(lane.logits.argmax()))
        live = [x for x in live if x.written[-1] not in runner.stop and len(x.written) < x.limit]
        if not live:
            break
        _step(runner, live, [lane.written[-1] for lane in live])
    for lane in lanes:
        lane.sequence.generated = list(lane.written)
        lane.sequence.verify()


def _step_along(runner: Runner, lanes: Many[Lane], chunk: int | None) -> None:
    _read_after(runner, lanes, chunk)
    for i in range(max(len(lane.reference) for lane in lanes)):
        for lane in lanes:
            if i < len(lane.reference):
                _judge(lane, lane.logits[None], [lane.reference[i]])
        live = [lane for lane in lanes if i + 1 < len(lane.reference)]
        if live:
            _step(runner, live, [lane.reference[i] for lane in live])


def _step(runner: Runner, lanes: Many[Lane], tokens: list[int]) -> None:
    began = perf_counter()
    spans = [Span(lane.sequence, i, i + 1, lane.sequence.later) for i, lane in enumerate(lanes)]
    found = runner.step(spans).forward(runner.model, tokens)
    for lane, logits in zip(lanes, found, strict=True):
        lane.logits = logits
        lane.seconds.append(perf_counter() - began)


def _read_after(runner: Runner, lanes: Many[Lane], chunk: int | None) -> None:
    for lane in lanes:
        if lane.after:
            lane.logits = runner.feed(lane.sequence, lane.after, chunk)


def _force(runner: Runner, lanes: Many[Lane]) -> None:
    feeds, goals = [], []
    for lane in lanes:
        if not lane.after:
            _judge(lane, lane.logits[None], lane.reference[:1])
        tokens = lane.after + lane.reference
        feeds.append(tokens[:-1])
        # the token that each one fed predicts; None inside the question
        goals.append([t if i >= len(lane.after) else None for i, t in enumerate(tokens)][1:])
        lane.sequence.prompt += len(lane.after)
    size = max(1, PASS // len(lanes))
    for start in range(0, max(map(len, feeds)), size):
        parts = [(lane, f[start : start + size], g[start : start + size]) for lane, f, g in _zip(lanes, feeds, goals)]
        parts = [part for part in parts if part[1]]
        spans, tokens, where, targets = [], [], [], []
        for lane, feed, goal in parts:
            spans.append(Span(lane.sequence, len(tokens), len(tokens) + len(feed), None))
            asked = [(len(tokens) + i, t) for i, t in enumerate(goal) if t is not None]
            where += [i for i, _ in asked]
            targets.append([t for _, t in asked])
            tokens += feed
        listening = _Listening(runner.model, where)
        runner.step(spans).forward(listening, tokens)
        done = 0
        for (lane, _, _), wanted in zip(parts, targets, strict=True):
            if wanted:
                _judge(lane, listening.logits[done : done + len(wanted)], wanted)
            done += len(wanted)


def _zip(*lists: Iterable[Any]) -> Iterable[Any]:
    return zip(*lists, strict=True)


@torch.inference_mode()
def _judge(lane: Lane, logits: Tensor, targets: list[int]) -> None:
    """logits [n, vocabulary] against n tokens."""
    x = logits.float()
    picked = x.gather(1, torch.tensor(targets, device=x.device)[:, None])[:, 0]
    done = len(lane.nll)
    lane.nll += (x.logsumexp(1) - picked).tolist()
    lane.picks += x.argmax(1).tolist()
    if lane.keeps:
        lane.spoken.append(x.log_softmax(1))
    if lane.against is not None:
        p = lane.against[done : done + len(targets)]
        lane.kl += (p.exp() * (p - x.log_softmax(1))).sum(1).tolist()


class _Listening:
    """The model, for one pass: the logits at more places than the pass itself asks for."""

    def __init__(self, model: Any, where: list[int]):
        self.model, self.where = model, where
        self.logits = torch.empty(0)

    def __call__(self, *, logits_to_keep: Tensor, **inputs: Any) -> Any:
        extra = torch.tensor(self.where, dtype=logits_to_keep.dtype, device=logits_to_keep.device)
        output = self.model(logits_to_keep=torch.cat([extra, logits_to_keep]), **inputs)
        self.logits, output.logits = output.logits[0, : len(self.where)], output.logits[:, len(self.where) :]
        return output
