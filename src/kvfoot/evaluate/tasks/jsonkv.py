"""JSON key-value: an object of many pairs inside a long text; the value of a key is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn

# tokens of one value in the model's own vocabulary, for the number of pairs in training
COST = {"number": 8, "six digits": 8, "word": 4, "words": 8, "uuid": 38, "hex": 9}


@dataclass(frozen=True)
class JsonShape:
    """backward: how often the value is given and its key asked for (training's teacher of reading to the left)."""

    pairs: int = 60
    keys: str = "six digits"
    values: str = "six digits"
    asks: int = 8
    separator: str = ", "
    filler: bool = True
    backward: float = 0.0


def vary(draw: Draw, room: int) -> JsonShape:
    """3 to 200 pairs of numbers, words, UUIDs or hexadecimal digits."""
    keys = draw.weighted({"number": 0.25, "word": 0.22, "words": 0.1, "uuid": 0.28, "hex": 0.15})
    values = keys
    if draw.chance(0.5):
        values = draw.weighted({"number": 0.35, "word": 0.2, "words": 0.15, "uuid": 0.15, "hex": 0.15})
    most = max(4, min(200, int(room * 0.6 / (COST[keys] + COST[values] + 5))))
    separator = draw.pick((", ", ",\n", ",\n "))
    backward = draw.pick((0.0, 0.0, 0.5, 1.0))
    return JsonShape(draw.log_between(3, most), keys, values, 64, separator, draw.chance(0.5), backward)


def draft(draw: Draw, shape: JsonShape, room: int) -> Draft:
    keys = draw.distinct(lambda: draw.value(shape.keys), shape.pairs)
    values = draw.distinct(lambda: draw.value(shape.values), 2 * shape.pairs) if shape.backward else []
    values = [value for value in values if value not in keys]
    if len(values) < len(keys):
        values = [draw.value(shape.values) for _ in keys]
    pairs = list(zip(keys, values, strict=False))
    head, ask = draw.wording.json(draw)
    block = "{" + shape.separator.join(f'"{key}": "{value}"' for key, value in pairs) + "}"
    if shape.backward and draw.chance(0.5):  # any list of pairs will do
        mark, end = draw.pick((" ", ": ", " - ", ", ", "\t", " = ", " -> ", "|")), draw.pick(("\n", "; ", ".\n", " / "))
        block = end.join(f'"{key}"{mark}"{value}"' for key, value in pairs) + end
    turns = []
    for key, value in draw.shuffled(pairs)[: shape.asks]:
        given, wanted = (value, key) if draw.chance(shape.backward) else (key, value)
        turns.append(Turn(ask.format(k=given), (f' "{wanted}"',)))
    return Draft("", (f"\n{head}{block}\n",), tuple(turns), scatter=shape.filler)
