"""Which rows a reader is asked about together in a replayed step, and what it costs them."""

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.cache.trace import Pass
from kvfoot.core.reading import Reader
from kvfoot.engine import states
from kvfoot.engine.asked import Rows
from kvfoot.engine.ledger import WHOLE
from kvfoot.engine.sequence import Sequence


@dataclass(eq=False)
class Group:
    """Rows that are asked about together: the same heads of sequences `members` of the batch, states of one shape.

    number: int64 [E], the rows among the layer's R; rows: the same, as neighbours where they are.
    """

    layer: int
    heads: tuple[int, ...]
    members: tuple[int, ...]
    size: int
    number: Tensor
    rows: Rows
    state: Any
    length: int = 0
    """Of the queue."""
    shapes: tuple[torch.Size, ...] = ()
    """Of the tensors of the state as they came: without a queue and what grows."""

    @property
    def place(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        return self.layer, self.heads, self.members

    @property
    def key(self) -> tuple[Any, ...]:
        return *self.place, self.size, self.length, self.shapes


@dataclass(frozen=True)
class Cost:
    """Entries that a step of a kind reads per row, known when it is recorded: `read` of them by the list, None for all.

    fires: a row may refresh; full: it then reads all that is stored, else `renewed` entries. extra: see Read.
    page: where `read` counts pages, a row's newest among them, their entries. bounds: entries of pages whose bounds are
    read as well.
    """

    read: int | None
    fires: bool
    full: bool
    renewed: int
    extra: float
    page: int = 0
    bounds: int = 0


@dataclass(frozen=True)
class Tally:
    """The costs of a kind of step by (layer, place in the batch, KV head), as arrays. here: whether there is one."""

    here: np.ndarray
    read: np.ndarray
    fires: np.ndarray
    full: np.ndarray
    renewed: np.ndarray
    extra: np.ndarray
    page: np.ndarray
    bounds: np.ndarray

    @staticmethod
    def of(costs: list[tuple[Group, Cost]], shape: tuple[int, ...]) -> "Tally":
        kinds = (bool, np.int64, bool, bool, np.int64, np.float64, np.int64, np.int64)
        t = Tally(*(np.zeros(shape, kind) for kind in kinds))
        for group, cost in costs:
            at = np.ix_([group.layer], group.members, group.heads)
            t.here[at], t.fires[at], t.full[at] = True, cost.fires, cost.full
            t.read[at] = WHOLE if cost.read is None else cost.read
            t.renewed[at], t.extra[at] = cost.renewed, cost.extra
            t.page[at], t.bounds[at] = cost.page, cost.bounds
        return t

    def add(self, p: Pass, b: int, fired: np.ndarray) -> None:
        """A step's reads of the sequence at place b into its pass. fired: bool [L, KV heads]."""
        assert p.loaded is not None and p.refreshed is not None and p.scan is not None  # noqa: PT018
        own, n, refreshed = self.here[:, b], p.before + 1, fired & self.fires[:, b]
        page, bounds = (x[:, b].clip(1) for x in (self.page, self.bounds))
        listed = np.where(self.page[:, b] > 0, (self.read[:, b] - 1) * page + (n - 1) % page + 1, self.read[:, b])
        read = np.where(refreshed, np.where(self.full[:, b], n, self.renewed[:, b]), np.minimum(listed, n))
        extra = self.extra[:, b] + np.where(self.bounds[:, b] > 0, -(-n // bounds), 0)
        p.loaded[own], p.refreshed[own] = read[own], refreshed[own]
        p.scan[own] += (np.where(refreshed, n, 0) + 2 * extra)[own]


def grouped(sequences: Many[Sequence], method: Reader, kv_heads: int, device: torch.device) -> list[Group]:
    """The sequences' states, those of a shape in one group if the method can be asked so; queues and what grows are
    left out.
    """
    found: dict[tuple[Any, ...], tuple[list[int], list[Any]]] = {}
    for b, s in enumerate(sequences):
        for (layer, heads), state in s.reading.items():
            own: Any = state if method.lasting else None
            length = 0
            own = states.without(own, method.grown)
            shape = states.shapes(own)
            if method.queue is not None:
                length = queue_of(method, own).shape[1]
                own = replace(own, **{method.queue: None})
            key = (layer, heads, s.plan.reads or 0, length, shape)
            members, some = found.setdefault(key if method.batched else (*key, b), ([], []))
            members.append(b)
            some.append(own)
    made = []
    for (layer, heads, size, length, *_), (members, some) in found.items():
        rows = [b * kv_heads + head for b in members for head in heads]
        number = torch.tensor(rows, device=device)
        neighbours = rows == list(range(rows[0], rows[0] + len(rows)))
        own_rows = slice(rows[0], rows[-1] + 1) if neighbours else number
        state = states.joined(some)
        made.append(Group(layer, heads, tuple(members), size, number, own_rows, state, length, states.shapes(state)))
    return made


def queue_of(method: Reader, state: Any) -> Tensor:
    assert method.queue is not None
    found = getattr(state, method.queue)
    assert isinstance(found, Tensor)
    return found
