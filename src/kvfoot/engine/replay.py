"""Tokens read again by full attention: what readers left inexact is put right, or never becomes output."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method
from kvfoot.core.reading import Reader
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.span import Span

if TYPE_CHECKING:
    from kvfoot.engine.runner import Runner


def check(method: Method, geometry: Geometry, sampling: Sampling) -> None:
    """Raises UsageError where tokens cannot be read again, or drafts would not be what sampling gives."""
    if not isinstance(method, Reader):
        return
    name = "verify" if method.verify else "rectify"
    windowed = any(geometry.windows)
    if windowed and (method.verify or method.rectify):
        raise UsageError(f"{method.name}: {name} takes tokens back, which layers with a window of their own cannot do")
    if windowed and method.tokens > 1:
        raise UsageError(f"{method.name} corrects tokens, which layers with a window of their own cannot do: use quest")
    if windowed and method.storage.values == "host":
        raise UsageError(
            f"{method.name}: values=host: layers with a window of their own would fetch theirs every step: "
            "leave values on the device"
        )
    if method.verify and sampling.temperature > 0:
        raise UsageError(f"{method.name}: verify checks greedy drafts: set temperature=0, or verify=0")


def rewind(runner: "Runner", sequence: Sequence, count: int) -> None:
    """Take the last `count` tokens out of the cache; their passes stay in the trace as what they were, transient."""
    if not count:
        return
    runner.cache.truncate(sequence.rows, count)
    sequence.promised = sequence.promised - count
    for p in sequence.trace.passes[-count:]:
        assert p.n == 1
        p.n, p.uncommitted = 0, 1


def forget(runner: "Runner", sequence: Sequence, count: int) -> None:
    """Take the last `count` tokens of the last pass back: wrong drafts, or right ones behind an end token."""
    if not count:
        return
    runner.cache.truncate(sequence.rows, count)
    sequence.promised = sequence.promised - count
    last = sequence.trace.passes[-1]
    last.n, last.uncommitted = last.n - count, last.uncommitted + count


def verified(runner: "Runner", sequence: Sequence, count: int) -> Tensor:
    """Up to `count` greedy tokens: drafted by the reader, checked by one full pass (arXiv 2408.11049, section 4).

    Returns the full pass's logits fp32 [accepted, vocabulary]: their argmaxes are the accepted drafts and, where one
    was wrong, the right token in its place.
    """
    drafts, states = [sequence.tokens[-1]], []
    for _ in range(count):
        logits = runner.step([Span(sequence, 0, 1, None)]).forward(runner.model, drafts[-1:])[0]
        drafts.append(int(logits.argmax()))
        states.append(dict(sequence.reading))
    rewind(runner, sequence, count)
    found = runner.step([Span(sequence, 0, count, None, dense=True)]).forward(runner.model, drafts[:-1], every=True)
    right = found.argmax(-1) == torch.tensor(drafts[1:], device=found.device)
    accepted = min(count, 1 + int(right.long().cumprod(0).sum()))
    forget(runner, sequence, count - accepted)
    sequence.reading = states[accepted - 1]
    return found[:accepted]
