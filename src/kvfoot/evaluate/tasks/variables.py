"""Variable tracking (RULER): a value is given to a name and copied from name to name; list the names that hold it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class VariableShape:
    """single: ask for one hop at a time instead of the whole list (training's first rung).

    ragged: every chain has its own number of hops, `hops` at most.
    """

    chains: int = 4
    hops: int = 3
    asks: int = 2
    names: str = "letters"
    filler: bool = True
    single: bool = False
    ragged: bool = False


def vary(draw: Draw, room: int) -> VariableShape:
    """A ladder: one hop to five, dense lists or filler, names of letters, words or numbered letters."""
    hops = draw.weighted({1: 0.5, 2: 0.4, 3: 0.1} if room < 700 else {1: 0.12, 2: 0.23, 3: 0.4, 4: 0.15, 5: 0.1})
    most = max(2, min(60, room // (40 + 25 * hops)))
    chains = draw.log_between(1, most) if draw.chance(0.5) else draw.between(most // 2, most)
    names = draw.weighted({"letters": 0.5, "short": 0.15, "word": 0.15, "numbered": 0.12, "words": 0.08})
    return VariableShape(chains, hops, 64, names, draw.chance(0.6), draw.chance(0.15), draw.chance(0.5))


def _name(draw: Draw, kind: str) -> str:
    if kind in ("letters", "short"):
        count = 5 if kind == "letters" else draw.between(2, 7)
        return "".join(draw.pick(LETTERS) for _ in range(count))
    return f"{draw.pick(LETTERS)}{draw.number(1, 4)}" if kind == "numbered" else draw.value(kind)


def draft(draw: Draw, shape: VariableShape, room: int) -> Draft:
    length = shape.hops + 1
    names = draw.distinct(lambda: _name(draw, shape.names), shape.chains * length)
    wording = draw.wording.variables(draw)
    streams, turns = [], []
    for start in range(0, len(names) - length + 1, length):
        own = draw.between(2, length) if shape.ragged else length
        chain, value = names[start : start + own], draw.number(5, 5)
        stream = [wording.base.format(a=chain[0], v=value)]
        stream += [wording.hop.format(a=a, b=b) for a, b in itertools.pairwise(chain)]
        streams.append(stream)
        if shape.single:
            ask = f"{draw.fragment()} {{a}} {draw.fragment(1, 3)}"
            turns += [Turn(ask.format(a=a), (f" {b}",)) for a, b in itertools.pairwise(chain)]
        else:
            units = (f" {chain[0]}", *(f", {name}" for name in chain[1:]))
            turns.append(Turn(wording.ask.format(v=value), units))
    # the chains are shuffled into each other; each keeps its own order
    order = draw.shuffled([index for index, stream in enumerate(streams) for _ in stream])
    rest = [iter(stream) for stream in streams]
    items = tuple(next(rest[index]) for index in order)
    return Draft("", items, tuple(draw.shuffled(turns)[: shape.asks]), scatter=shape.filler)
