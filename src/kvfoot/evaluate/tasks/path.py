"""Path traversal (LongProc): every town has one road out; write the route from one town to another, step by step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from kvfoot.evaluate.tasks import places
from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn

MODES = ("bus", "train", "plane", "ferry")


@dataclass(frozen=True)
class PathShape:
    """steps: least and most of them; towns: None fills the context.

    ragged: every question has its own number of steps. twins: towns on the way that look like the goal, at most.
    """

    steps: tuple[int, int] = (24, 40)
    asks: int = 1
    towns: int | None = None
    filler: bool = False
    group: int = 4
    ragged: bool = False
    twins: int = 0


def vary(draw: Draw, room: int) -> PathShape:
    """1 to 40 steps and 1 to 6 questions, as long as the answers leave half of the room; a third with filler.

    In seven of ten no two routes are of one length, and as often a route leads past towns that look like its goal.
    """
    asks = draw.between(1, max(1, min(6, room // 150)))
    steps = max(2, min(40, int(room * 0.4 / (asks * 21))))
    filler = draw.chance(0.35)
    towns = draw.log_between(6, max(7, room // 30)) if filler else None
    ragged, twins = draw.chance(0.7), draw.between(1, 3) if draw.chance(0.7) else 0
    least = 1 if ragged else min(4, steps)
    return PathShape((least, steps), asks, towns, filler, draw.between(1, 8), ragged, twins)


def _step(a: str, mode: str, b: str) -> str:
    return f"From {a}, take a {mode} to {b}.\n"


def draft(draw: Draw, shape: PathShape, room: int) -> Draft | None:
    line, ask = draw.wording.path(draw)
    name = draw.towns()
    wanted = draw.between(*shape.steps)
    per_town = draw.mean_tokens(lambda: line.format(a=name(), b=name(), m="train"), 12)
    per_step = draw.mean_tokens(lambda: _step(name(), "train", name()), 12)
    question = draw.count([ask]) + 24
    room -= 10 + int(shape.asks * (wanted * per_step * 1.05 + question))
    most = int(room * 0.96 / per_town)
    towns = draw.distinct(name, most if shape.towns is None else min(most, shape.towns)) if most >= 6 else []
    count = len(towns)
    wanted = min(wanted, count - 1)
    if count < 6 or wanted < shape.steps[0]:
        return None
    # one long road; the other towns lead into a random place
    road = draw.shuffled(range(count))[: max(wanted + 1, int(count * draw.rng.uniform(0.4, 1.0)))]
    following = dict(itertools.pairwise(road))
    for town in range(count):
        following.setdefault(town, (town + draw.between(1, count - 1)) % count)
    modes = [draw.pick(MODES) for _ in towns]
    ways = []
    for _ in range(shape.asks):
        steps = draw.between(shape.steps[0], wanted) if shape.ragged else wanted
        start = draw.between(0, len(road) - steps - 1)
        ways.append(road[start : start + steps + 1])
    if shape.twins:
        _name_twins(draw, towns, ways, shape.twins)
    turns = []
    for way in ways:
        units = [_step(towns[a], modes[a], towns[b]) for a, b in itertools.pairwise(way)]
        turns.append(Turn(ask.format(a=towns[way[0]], b=towns[way[-1]]), (f" {units[0]}", *units[1:])))
    lines = draw.shuffled(
        [line.format(a=towns[town], b=towns[following[town]], m=modes[town]) for town in range(count)]
    )
    if not shape.filler:
        return Draft("", ("\n" + "".join(lines),), tuple(turns), scatter=False, metadata={"towns": count})
    groups = tuple("\n" + "".join(lines[i : i + shape.group]) for i in range(0, count, shape.group))
    return Draft("", groups, tuple(turns), metadata={"towns": count})


def _name_twins(draw: Draw, towns: list[str], ways: list[list[int]], most: int) -> None:
    """Some towns between the ends of a way get names that look like its goal's; goals keep theirs."""
    kept, taken = {way[-1] for way in ways}, set(towns)
    for way in ways:
        for town in draw.shuffled([town for town in way[1:-1] if town not in kept])[:most]:
            name = places.twin(draw.rng, towns[way[-1]])
            if name not in taken:
                taken.add(name)
                towns[town] = name
