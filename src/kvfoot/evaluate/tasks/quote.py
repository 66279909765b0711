"""Quote: the first words of a sentence of the text are given; write the words that followed."""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.corpus import sentence_starts
from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn


@dataclass(frozen=True)
class QuoteShape:
    """given, wanted: least and most words of the cue and of the answer."""

    asks: int = 4
    given: tuple[int, int] = (5, 9)
    wanted: tuple[int, int] = (6, 20)


def vary(draw: Draw, room: int) -> QuoteShape:
    return QuoteShape(draw.between(2, max(4, min(32, room // 250))))


def draft(draw: Draw, shape: QuoteShape, room: int) -> Draft | None:
    ask = draw.wording.quote(draw)
    probe = draw.corpus.passage(draw.rng, 3000)
    per_token = 3000 / draw.count([probe])
    room -= 10 + shape.asks * int(draw.count([ask]) + 8 + (sum(shape.given) + sum(shape.wanted)) * 0.5 * 6 / per_token)
    if room < 150:
        return None
    text = draw.corpus.passage(draw.rng, int(room * per_token * 0.92)).replace("\n", " ")
    starts = [at for at in sentence_starts(text) if at < len(text) - 300]
    turns = []
    for at in draw.shuffled(starts)[: shape.asks]:
        words = text[at : at + 300].split()[:-1]
        given, wanted = draw.between(*shape.given), draw.between(*shape.wanted)
        if len(words) >= given + wanted:
            cue, answer = " ".join(words[:given]), " ".join(words[given : given + wanted])
            turns.append(Turn(f"{ask} {cue}", (f" {answer}",)))
    return Draft(text, (), tuple(turns), scatter=False) if turns else None
