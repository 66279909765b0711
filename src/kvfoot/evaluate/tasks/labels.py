"""Many-shot labels: words with made-up labels, many examples; give a word its label."""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn


@dataclass(frozen=True)
class LabelShape:
    """shots are drawn from `words` with repetition, so most asked words were seen a few times. Chance: 1 / labels."""

    shots: int = 150
    words: int = 50
    labels: int = 6
    asks: int = 16
    filler: bool = False


def vary(draw: Draw, room: int) -> LabelShape:
    shots = draw.between(6, max(8, min(400, room // 14)))
    words = max(4, int(shots / draw.rng.uniform(1.0, 6.0)))
    return LabelShape(shots, words, draw.between(2, 8), 64, draw.chance(0.2))


def draft(draw: Draw, shape: LabelShape, room: int) -> Draft:
    labels = draw.distinct(draw.word, shape.labels)
    form = draw.wording.labels(draw)
    label_of = {word: draw.pick(labels) for word in draw.distinct(draw.noun, shape.words)}
    words = list(label_of)
    shown = [draw.pick(words) for _ in range(shape.shots)]
    block = "".join(f"\n{form.format(w=' ' + word)} {label_of[word]}" for word in shown)
    asked = draw.shuffled(list(dict.fromkeys(shown)))[: shape.asks]
    turns = tuple(Turn(form.format(w=" " + word), (f" {label_of[word]}",)) for word in asked)
    return Draft("", (f"{block}\n",), turns, scatter=shape.filler)
