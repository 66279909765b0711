"""Teacher forcing on a runner: the logits after every token of a given text, under a method.

A text's prompt is read in the plan's passes, cuts included; what follows is fed one token at a time where the method
evicts or reads a part while it decodes, else in passes: the logits are the same then, and come ten times sooner.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many
from typing import Any

import torch
from torch import Tensor

from kvfoot.core.budget import Cut
from kvfoot.core.errors import UsageError
from kvfoot.core.hooks import Method
from kvfoot.core.reading import Reader
from kvfoot.engine.runner import Runner
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.span import Span

PASS = 256
"""Most tokens of a pass whose logits are all held."""
APPENDING = ("baseline", "evict", "learn")
"""Categories of methods whose decode steps read everything that is stored."""


class _EveryToken:
    """The model, for one pass: logits after every token instead of the last."""

    def __init__(self, model: Any):
        self.model = model
        self.logits = torch.empty(0)

    def __call__(self, *, logits_to_keep: Tensor, **inputs: Any) -> Any:
        output = self.model(logits_to_keep=0, **inputs)
        self.logits, output.logits = output.logits[0], output.logits[:, logits_to_keep]
        return output


def check_replay(method: Method) -> None:
    """Raises UsageError for a method that reads tokens again: tokens that are given are read once."""
    if isinstance(method, Reader) and (method.verify or method.rectify):
        name = "verify" if method.verify else "rectify"
        raise UsageError(f"{method.name}: {name} reads tokens again, an evaluation reads them once: use kvfoot run")


def steps_at_decode(sequence: Sequence) -> bool:
    """Whether the tokens after the prompt have to be fed one by one."""
    check_replay(sequence.method)
    return sequence.later is not None or sequence.method.category not in APPENDING


def read(runner: Runner, sequence: Sequence) -> Iterator[tuple[int, Tensor]]:
    """The prompt in its plan's passes: (position, logits [n, vocabulary] after the n tokens from there), pass by pass.

    Exhaust it: the prompt is settled and checked after the last pass.
    """
    for part in sequence.passes:
        patch = sequence.tokens[slice(*part.patch)] if part.patch else []
        yield part.start, _pass(runner, sequence, sequence.tokens[part.start : part.stop], part.cut, patch)
    runner.cache.settle()
    sequence.verify()
    sequence.freeze()
    sequence.held = sequence.rows.lens.copy()


def follow(runner: Runner, sequence: Sequence, tokens: list[int]) -> Iterator[Tensor]:
    """Feed `tokens` after the prompt: logits [n, vocabulary] after the next n of them, until all are fed."""
    size = 1 if steps_at_decode(sequence) else PASS
    for start in range(0, len(tokens), size):
        yield _pass(runner, sequence, tokens[start : start + size], sequence.later)
    sequence.verify()


def _pass(runner: Runner, sequence: Sequence, tokens: list[int], cut: Cut | None, patch: Many[int] = ()) -> Tensor:
    """patch: tokens behind the pass that observe and are not stored; their logits are left out."""
    model = _EveryToken(runner.model)
    span = Span(sequence, 0, len(tokens), cut, patch=len(patch))
    runner.step([span]).forward(model, [*tokens, *patch])
    return model.logits[: len(tokens)]


@torch.inference_mode()
def nats(logits: Tensor, targets: list[int]) -> list[float]:
    """Negative log-likelihoods of n targets under logits [n, vocabulary], in nats."""
    found: list[float] = []
    for start in range(0, len(targets), PASS):
        part = logits[start : start + PASS].float()
        wanted = torch.tensor(targets[start : start + PASS], device=part.device)
        found += torch.nn.functional.cross_entropy(part, wanted, reduction="none").tolist()
    return found
