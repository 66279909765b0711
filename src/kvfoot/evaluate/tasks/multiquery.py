"""Multi-query: one question names several keys; the answer gives their values in the question's order."""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import KEY_FORMS, Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn


@dataclass(frozen=True)
class MultiQueryShape:
    keys: int = 8
    per_ask: int = 4
    asks: int = 2
    values: str = "number"
    form: str = "adjective-noun"


def vary(draw: Draw, room: int) -> MultiQueryShape:
    keys = draw.between(2, max(3, min(32, room // 100)))
    values = draw.weighted({"number": 0.6, "word": 0.2, "words": 0.1, "hex": 0.1})
    return MultiQueryShape(keys, draw.between(2, 6), 16, values, draw.pick(KEY_FORMS))


def draft(draw: Draw, shape: MultiQueryShape, room: int) -> Draft:
    keys = draw.distinct(lambda: draw.key(shape.form), shape.keys)
    values = draw.distinct(lambda: draw.value(shape.values), len(keys))
    value_of = dict(zip(keys, values, strict=False))
    keys = list(value_of)
    title, wording = draw.wording.title(draw), draw.wording.multi_query(draw)
    items = tuple(draw.shuffled([wording.item.format(t=title, k=key, v=value) for key, value in value_of.items()]))
    turns = []
    for _ in range(shape.asks):
        asked = draw.shuffled(keys)[: shape.per_ask]
        join = draw.pick((", ", ", ", ", ", "; ", " / ", " and ", " , ")) if draw.training else ", "
        units = (f" {value_of[asked[0]]}", *(f", {value_of[key]}" for key in asked[1:]))
        turns.append(Turn(wording.ask.format(t=title, k=join.join(asked)), units))
    return Draft("", items, tuple(turns))
