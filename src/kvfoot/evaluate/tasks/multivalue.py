"""Multi-value: every key has several values, far apart; the answer lists them in the order of the text."""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import KEY_FORMS, Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn


@dataclass(frozen=True)
class MultiValueShape:
    keys: int = 4
    per_key: int = 4
    asks: int = 2
    values: str = "number"
    form: str = "adjective-noun"
    equal: bool = True


def vary(draw: Draw, room: int) -> MultiValueShape:
    """2 to 9 values a key, mostly unequal numbers of them, so that the end of the list must be seen and not counted.

    Two in five have 2 to 8 keys in any room: in a long one their values lie thousands of tokens apart.
    """
    most = max(2, min(48, room // 140))
    kind = draw.rng.random()
    if kind < 0.4:
        keys = draw.between(2, min(8, most))
    else:
        keys = draw.log_between(1, most) if kind < 0.7 else draw.between(most // 2, most)
    values = {"number": 0.65, "word": 0.25, "hex": 0.1}
    most = max(2, min(9, room // (20 * keys)))
    return MultiValueShape(
        keys, draw.between(2, most), 64, draw.weighted(values), draw.pick(KEY_FORMS), draw.chance(0.3)
    )


def draft(draw: Draw, shape: MultiValueShape, room: int) -> Draft:
    keys = draw.distinct(lambda: draw.key(shape.form), shape.keys)
    title, wording = draw.wording.title(draw), draw.wording.multi_value(draw)
    pairs = []
    for key in keys:
        count = shape.per_key if shape.equal else draw.between(1, shape.per_key)
        pairs += [(key, value) for value in draw.distinct(lambda: draw.value(shape.values), count)]
    pairs = draw.shuffled(pairs)
    items = tuple(wording.item.format(t=title, k=key, v=value) for key, value in pairs)
    turns = []
    for key in draw.shuffled(keys)[: shape.asks]:
        values = [value for owner, value in pairs if owner == key]
        units = (f" {values[0]}", *(f", {value}" for value in values[1:]))
        turns.append(Turn(wording.ask.format(t=title, k=key), units))
    return Draft("", items, tuple(turns))
