"""Chain-of-key (RefreshKV): keys of two words; list them so that each begins with the word that ended the last one.

All words form one cycle, so every key has exactly one successor and no start is a short loop. Unlike the paper's form,
where any chain of ten is right, the question names the first and the last word: one right answer, step by step.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn


@dataclass(frozen=True)
class ChainShape:
    """keys: None fills the context with keys; group: lines that stay together where there is filler.

    ragged: every question has its own number of hops, `hops` at most.
    """

    hops: int = 32
    asks: int = 1
    keys: int | None = None
    filler: bool = False
    group: int = 4
    ragged: bool = False


def vary(draw: Draw, room: int) -> ChainShape:
    """3 to 40 hops, 1 to 8 questions, the answers at most half of the room; a third scatter the keys over filler."""
    asks = draw.between(1, max(1, min(8, room // 250)))
    hops = draw.between(3, max(3, min(40, int((room * 0.5 - asks * 40) / (asks * 11)))))
    filler = draw.chance(0.35)
    keys = draw.log_between(4, max(5, room // 16)) if filler else None
    return ChainShape(hops, asks, keys, filler, draw.between(1, 8), draw.chance(0.7))


def draft(draw: Draw, shape: ChainShape, room: int) -> Draft | None:
    head, label, ask = draw.wording.chain(draw)
    words = draw.words()
    per_key = draw.mean_tokens(lambda: f'{label}"{draw.word()}-{draw.word()}"\n')
    question = draw.count([head + ask]) + 12
    room -= question + int(shape.asks * (shape.hops * (per_key + 1.5) + question))
    fill = int(room * 0.97 / per_key)
    most = min(len(words), fill)
    count = most if shape.keys is None else min(most, shape.keys)
    if count < 4:
        return None
    words = words[:count]
    keys = [f'"{word}-{words[(i + 1) % count]}"' for i, word in enumerate(words)]
    turns = []
    for start in draw.shuffled(range(count))[: shape.asks]:
        hops = min(draw.between(2, shape.hops) if shape.ragged else shape.hops, count)
        chain = [keys[(start + step) % count] for step in range(hops)]
        text = ask.format(n=hops, s=words[start], e=words[(start + hops) % count])
        turns.append(Turn(text, (f" {chain[0]}", *(f", {key}" for key in chain[1:]))))
    lines = draw.shuffled([f"{label}{key}\n" for key in keys])
    # a context longer than all words can fill is made longer with book text
    if not shape.filler and fill <= len(words):
        return Draft(head, ("\n" + "".join(lines),), tuple(turns), scatter=False, metadata={"keys": count})
    groups = tuple("\n" + "".join(lines[i : i + shape.group]) for i in range(0, count, shape.group))
    return Draft(head, groups, tuple(turns), metadata={"keys": count})
