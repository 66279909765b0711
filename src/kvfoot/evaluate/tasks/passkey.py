"""Passkey: one number in a long text, said for the reader to keep."""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn


@dataclass(frozen=True)
class PasskeyShape:
    """keys: several named ones in training, one in evaluation; depth: 0 first, 1 last, None anywhere.

    mixed: a new wording for every key.
    """

    keys: int = 1
    values: str = "number"
    depth: float | None = None
    mixed: bool = False


def vary(draw: Draw, room: int) -> PasskeyShape:
    """One in two of five; otherwise up to 8, 24 in long contexts, mostly in as many wordings."""
    keys = 1 if draw.chance(0.4) else draw.between(2, 8 if room < 4000 else 24)
    values = draw.weighted({"number": 0.86, "words": 0.08, "hex": 0.06})
    return PasskeyShape(keys, values, mixed=draw.chance(0.7))


def draft(draw: Draw, shape: PasskeyShape, room: int) -> Draft:
    titles = draw.distinct(lambda: draw.wording.passkey_title(draw), shape.keys)
    wording = draw.wording.passkey(draw, shape.keys > 1, shape.values)
    items, turns = [], []
    for title in titles:
        if shape.mixed:
            wording = draw.wording.passkey(draw, shape.keys > 1, shape.values)
        value = draw.value(shape.values)
        items.append(wording.item.format(t=title, v=value))
        turns.append(Turn(wording.ask.format(t=title), (f" {value}",)))
    return Draft("", tuple(items), tuple(draw.shuffled(turns)), depth=shape.depth)
