"""Multi-key needles: keys with values scattered over a long text, each asked for."""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import KEY_FORMS, Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn
from kvfoot.evaluate.tasks.wording import Lookup


@dataclass(frozen=True)
class NeedleShape:
    """keys: how many are in the text; asks: how many are asked for; mixed: a new wording for every key."""

    keys: int = 4
    asks: int = 4
    values: str = "number"
    form: str = "adjective-noun"
    mixed: bool = False


def vary(draw: Draw, room: int) -> NeedleShape:
    """A shape for training: 2 to 96 keys, small counts more often."""
    most = max(2, min(96, room // 40))
    values = {"number": 0.42, "words": 0.2, "word": 0.15, "uuid": 0.13, "hex": 0.1}
    return NeedleShape(draw.log_between(2, most), 64, draw.weighted(values), draw.pick(KEY_FORMS), draw.chance(0.3))


def _readable(draw: Draw, shape: NeedleShape) -> Lookup:
    """A wording; a plain word as the value must stand after its key, or nothing tells it from the words around it."""
    wording = draw.wording.needle(draw)
    while shape.values == "word" and wording.item.index("{v}") < wording.item.index("{k}"):
        wording = draw.wording.needle(draw)
    return wording


def draft(draw: Draw, shape: NeedleShape, room: int) -> Draft:
    """One item a key, in random places."""
    keys = draw.distinct(lambda: draw.key(shape.form), shape.keys)
    values = draw.distinct(lambda: draw.value(shape.values), len(keys))
    title, wording = draw.wording.title(draw), _readable(draw, shape)
    items, turns = [], []
    for key, value in zip(keys, values, strict=False):
        if shape.mixed:
            wording = _readable(draw, shape)
        items.append(wording.item.format(t=title, k=key, v=value))
        turns.append(Turn(wording.ask.format(t=title, k=key), (f" {value}",)))
    return Draft("", tuple(draw.shuffled(items)), tuple(draw.shuffled(turns)[: shape.asks]))
