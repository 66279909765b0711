"""A padded batch that arrives in forward passes of any size, as passes of the sequences' plans.

A *lane* is one sequence of such a batch. transformers decides how many columns a forward pass has; the plan decides
after which tokens entries are evicted. Where the two differ, a lane's columns are divided at the plan's bounds, and a
pass that has not come whole is attended to but held back until it has: what is evicted never depends on the columns.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from kvfoot.core.budget import Cut
from kvfoot.engine.sequence import Sequence

States = tuple[Tensor, Tensor, Tensor]
"""q [heads, n, D], k and v [kv_heads, n, D] of one lane and layer."""


@dataclass
class Lane:
    """index: its row of the batch. read: tokens that have come. held[layer]: those of a pass that is not whole yet."""

    index: int
    sequence: Sequence
    read: int = 0
    held: dict[int, States] = field(default_factory=dict)


@dataclass
class Piece:
    """Columns [start, stop) of a forward pass that belong to one pass of the lane's plan.

    before: tokens of the same pass that came earlier and are held. whole: the pass ends here and is committed.
    """

    lane: Lane
    start: int
    stop: int
    cut: Cut | None
    before: int = 0
    whole: bool = True

    @property
    def n(self) -> int:
        """Tokens of the pass that are here by now."""
        return self.before + self.stop - self.start


def pieces(lane: Lane, start: int, stop: int) -> list[Piece]:
    """Columns [start, stop) divided by the plan; the lane has read them afterwards. Without a cut nothing is held."""
    found: list[Piece] = []
    while start < stop:
        part = next((p for p in lane.sequence.passes if lane.read < p.stop), None)
        if part is None:
            found.append(Piece(lane, start, stop, lane.sequence.later))
            end = stop
        else:
            end = min(stop, start + part.stop - lane.read)
            whole = lane.read + end - start == part.stop
            if part.cut is None:
                found.append(Piece(lane, start, end, None))
            else:
                found.append(Piece(lane, start, end, part.cut, lane.read - part.start, whole))
        lane.read += end - start
        start = end
    return found


def ranks(each: Iterable[list[Piece]]) -> list[list[Piece]]:
    """Pieces to commit, first ones of all lanes first: those of one rank are of different lanes."""
    whole = [[piece for piece in own if piece.whole] for own in each]
    most = max((len(own) for own in whole), default=0)
    return [[own[rank] for own in whole if len(own) > rank] for rank in range(most)]


def bounds(mask: list[list[bool]], started: list[bool]) -> list[int | None]:
    """The column of each row's first token, its pads left of it; len(row) where there is none.

    None where a pad follows a token, or stands in a row that has `started`.
    """
    found: list[int | None] = []
    for row, begun in zip(mask, started, strict=True):
        first = row.index(True) if True in row else len(row)
        found.append(None if not all(row[first:]) or (begun and first) else first)
    return found
