"""Multi-query: one question names several keys; the answer gives their values in the question's order."""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import KEY_FORMS, Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn


@dataclass(frozen=True)
class MultiQueryShape:
    """ragged: every question names another number of keys, `per_ask` at most."""

    keys: int = 8
    per_ask: int = 4
    asks: int = 2
    values: str = "number"
    form: str = "adjective-noun"
    ragged: bool = False


def vary(draw: Draw, room: int) -> MultiQueryShape:
    """2 to 8 keys in half of the documents, up to 32 in the others; 1 to 8 of them asked for at a time."""
    most = max(3, min(32, room // 100))
    keys = draw.between(2, min(8, most)) if draw.chance(0.5) else draw.between(2, most)
    values = draw.weighted({"number": 0.6, "word": 0.2, "words": 0.1, "hex": 0.1})
    return MultiQueryShape(keys, draw.between(2, 8), 16, values, draw.pick(KEY_FORMS), draw.chance(0.75))


def draft(draw: Draw, shape: MultiQueryShape, room: int) -> Draft:
    keys = draw.distinct(lambda: draw.key(shape.form), shape.keys)
    values = draw.distinct(lambda: draw.value(shape.values), len(keys))
    value_of = dict(zip(keys, values, strict=False))
    keys = list(value_of)
    title, wording = draw.wording.title(draw), draw.wording.multi_query(draw)
    items = tuple(draw.shuffled([wording.item.format(t=title, k=key, v=value) for key, value in value_of.items()]))
    turns = []
    for _ in range(shape.asks):
        asked = draw.shuffled(keys)[: draw.between(1, shape.per_ask) if shape.ragged else shape.per_ask]
        units = (f" {value_of[asked[0]]}", *(f", {value_of[key]}" for key in asked[1:]))
        turns.append(Turn(wording.ask.format(t=title, k=_named(draw, asked)), units))
    return Draft("", items, tuple(turns))


def _named(draw: Draw, keys: list[str]) -> str:
    """The keys in one line; in training with other marks too, and now and then another one before the last key."""
    if not draw.training:
        return ", ".join(keys)
    join = draw.pick((", ", ", ", ", ", "; ", " / ", " and ", " , "))
    last = draw.pick((" and ", ", and ", " or ", " and also ", " , then ")) if draw.chance(0.3) else join
    return last.join([join.join(keys[:-1]), keys[-1]]) if len(keys) > 1 else keys[0]
