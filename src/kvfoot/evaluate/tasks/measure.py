"""From a wanted length in tokens to the size of a context: the largest that fits, found in a few counts."""

from __future__ import annotations

from collections.abc import Callable

from kvfoot.core.errors import UsageError
from kvfoot.engine.prompts import JOINT
from kvfoot.evaluate.protocol import Count

SLACK = 4
"""Tokens kept free: texts that are encoded apart may take one more each than together."""


def tokens_of(count: Count, document: str, question: str, prefix: str) -> int:
    """Tokens of a user's turn and the beginning of its answer, the chat template's own aside."""
    turn = document + JOINT + question if document and question else document or question
    return count([part for part in (turn, prefix) if part]) + SLACK


def largest(task: str, tokens: Callable[[int], int], length: int, most: int | None = None) -> int:
    """The largest size in [0, most] with tokens(size) <= length, or one within 1/500 of the length.

    tokens: nearly proportional to the size, at least 1 a unit. `UsageError` where size 0 is too long.
    """
    low, low_tokens = 0, tokens(0)
    if low_tokens > length:
        raise UsageError(f"{task} does not fit into {length} tokens: it needs more than {low_tokens}")
    enough = max(1, length // 500)
    high, high_tokens, step = None, 0, 16
    turn = 0
    while length - low_tokens > enough and low != most and (high is None or high - low > 1):
        if high is None:
            guess = low + step
        elif turn % 3 == 2:  # the slope misled: halve
            guess = (low + high) // 2
        else:
            guess = low + int((length - low_tokens) * (high - low) / (high_tokens - low_tokens))
        guess = max(low + 1, guess if high is None else min(guess, high - 1))
        guess = guess if most is None else min(guess, most)
        have = tokens(guess)
        if have > length:
            high, high_tokens = guess, have
        else:
            step = (
                max(16, int((length - have) * (guess + 1) / max(1, have - low_tokens + 1) * 1.05)) if low == 0 else step
            )
            step = min(step, length)
            low, low_tokens = guess, have
        turn += 1
    return low
