"""Copying: random words, then the same again: the quickest teacher of looking back. For training only."""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn


@dataclass(frozen=True)
class CopyShape:
    words: int = 100
    filler: bool = False


def vary(draw: Draw, room: int) -> CopyShape:
    return CopyShape(draw.between(8, max(9, min(400, int((room - 20) / 6.2)))), draw.chance(0.3))


def draft(draw: Draw, shape: CopyShape, room: int) -> Draft:
    words = draw.distinct(draw.word, shape.words)
    turn = Turn("Again:", tuple(f" {word}" for word in words))
    return Draft("", (" " + " ".join(words),), (turn,), scatter=shape.filler)
