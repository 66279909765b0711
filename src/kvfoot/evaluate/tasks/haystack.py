"""What hides a needle: RULER's noise sentences, the books of a folder, or needles with other keys.

A haystack is a function of its size, so that a length in tokens can be met: text(size) holds every needle at every
size, in the given places (0 first, 1 last), in their order.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence

from kvfoot.evaluate.tasks.corpus import sentence_starts
from kvfoot.evaluate.tasks.texts import Texts

NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)

Haystack = Callable[[int], str]


def _lay(lines: list[str], needles: Sequence[str], places: Sequence[float]) -> list[str]:
    """Needles before the lines at their places."""
    found, last = [], 0
    for needle, place in zip(needles, places, strict=True):
        at = round(place * len(lines))
        found += [*lines[last:at], needle]
        last = at
    return found + lines[last:]


def noise_lines(sentences: int) -> list[str]:
    """RULER's five sentences a line; the last line may be cut short, so that a length is met to a few tokens."""
    lines = [" ".join(NOISE)] * (sentences // len(NOISE))
    rest = sentences % len(NOISE)
    return [*lines, " ".join(NOISE[:rest])] if rest else lines


def noise(needles: Sequence[str], places: Sequence[float]) -> Haystack:
    """Size: sentences. One needle a line."""
    return lambda size: "\n".join(_lay(noise_lines(size), needles, places))


def distractors(lines: Sequence[str], gap: float, needles: Sequence[str], places: Sequence[float]) -> Haystack:
    """Size: noise sentences in one block at `gap`, where a further line would be too long."""

    def text(size: int) -> str:
        at = round(gap * len(lines))
        return "\n".join(_lay([*lines[:at], *noise_lines(size), *lines[at:]], needles, places))

    return text


def books(
    texts: Texts, rng: random.Random, characters: int, needles: Sequence[str], places: Sequence[float]
) -> Haystack:
    """Size: words of a passage of at most `characters`; needles stand between its sentences."""
    passage = texts.passage(rng, characters)
    ends = [at for at, c in enumerate(passage) if c == " "]
    starts = sentence_starts(passage)

    def text(size: int) -> str:
        length = 0 if size == 0 else ends[size - 1] if size <= len(ends) else len(passage)
        found, last = [], 0
        for needle, place in zip(needles, places, strict=True):
            after = bisect.bisect_left(starts, place * length)
            near = [0, *starts[max(0, after - 1) : after + 1], length]
            at = min((at for at in near if last <= at <= length), key=lambda at: abs(at - place * length))
            found += [passage[last:at].strip(), needle]
            last = at
        return " ".join(part for part in (*found, passage[last:length].strip()) if part)

    return text


def spread(rng: random.Random, count: int, index: int) -> list[float]:
    """Places in ascending order. A single needle's depth is spread evenly over the samples (golden ratio)."""
    if count == 1:
        return [(0.5 + index * 0.6180339887498949) % 1]
    # RULER draws different ones of 40 depths from 0 to 100 %
    return sorted(place / 39 for place in rng.sample(range(40), count))
