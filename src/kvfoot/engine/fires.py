"""Which rows of a layer refresh in a replayed step, and which are read whole: known, or decided on the device."""

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from kvfoot.core.reading import Read
from kvfoot.engine.asked import Rows
from kvfoot.engine.groups import Group

Fires = bool | Tensor
"""Which of a layer's rows: all, none, or bool [R]."""


def put(x: Tensor, rows: Rows, values: Tensor | int | bool) -> None:
    """Into some of the rows of x."""
    if isinstance(rows, slice):
        x[rows].copy_(values) if isinstance(values, Tensor) else x[rows].fill_(values)
    elif isinstance(values, Tensor):
        x.index_copy_(0, rows, values)
    else:
        x.index_fill_(0, rows, values)


def firing(reads: Many[tuple[Group, Read]], live: Tensor, owned: int) -> Fires:
    """Rows that choose anew. live: bool [R], rows that are nobody's apart; owned: how many of them are somebody's."""
    asks = [chosen.refresh for _, chosen in reads]
    if not any(isinstance(ask, Tensor) for ask in asks):
        if not any(asks):
            return False
        if all(asks) and sum(len(group.number) for group, _ in reads) >= owned:
            return True
    fires = torch.zeros_like(live) if len(reads) > 1 or len(reads[0][0].number) < len(live) else None
    for group, chosen in reads:
        ask = chosen.refresh
        if isinstance(ask, Tensor):  # one per sequence, for all of its heads
            ask = ask.reshape(-1, 1).expand(len(group.members), len(group.heads)).reshape(-1)
        if fires is None:
            assert isinstance(ask, Tensor)
            return ask & live
        put(fires, group.rows, ask)
    assert fires is not None
    return fires & live


def whole(fires: Fires, every: Many[Group], live: Tensor, owned: int) -> Fires:
    """Rows that are read whole: those that fire and those of groups `every`; idle ones may be among them."""
    if fires is True or sum(len(group.number) for group in every) >= owned:
        return True
    marked = torch.zeros_like(live) if fires is False else fires.clone()
    for group in every:
        put(marked, group.rows, True)
    return marked
