"""One entry goes for a new one in every row that is full, inside a replayed step: which one, the device alone knows.

A method is asked (`overwrite`), unless it has declared that the least attention mass goes (`outweigh`). Where the
oldest entry goes, the host knows its slot (engine/oldest.py) and nothing here is called.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.state import Least
from kvfoot.cache.pool import Pool
from kvfoot.core.hooks import ABSENT, POSITION, Method, Needs, Seen
from kvfoot.core.ranking import Mass
from kvfoot.engine.buffers import Buffers


@dataclass(frozen=True)
class Scope:
    """The rows of one layer from which decoding takes entries. rows: int64 [E] among the layer's R, None for all.

    heads: int64 [E], their KV heads. entry: int64 [M], 0, 1, ..., as many as one of them may have, the new one
    included; inside: the same of a page.
    """

    rows: Tensor | None
    heads: Tensor
    entry: Tensor
    inside: Tensor

    def of(self, x: Tensor) -> Tensor:
        """The rows' part of x [R, ...]."""
        return x if self.rows is None else x.index_select(0, self.rows)


def flat(plane: Tensor) -> Tensor:
    return plane.view(-1, plane.shape[2])


def planes_of(pool: Pool) -> tuple[Tensor, ...]:
    """Everything that an entry has."""
    return (pool.k, pool.v, *pool.planes.values())


def outweigh(
    backend: Backend,
    pool: Pool,
    buffers: Buffers,
    ranking: Mass,
    layer: int,
    fence: Tensor,
    logits: Tensor,
    lse: Tensor,
) -> None:
    """After attention, for all rows of a layer: the mass of every entry, and the new one where the least was.

    fence: int64 [R] (Mass.fence); logits: fp32 [R, H, m] in base 2, of the attention whose normaliser is lse [R, H].
    """
    words, table = buffers.words, buffers.tables[layer]
    lens, slots, due = (words[name][layer] for name in ("lens", "slots", "due"))
    mass = None if ranking.plane is None else pool.planes[ranking.plane]
    unit = len(lens) // buffers.size if mass is None else 1
    mean, position = ranking.group == "mean", pool.planes[POSITION.name]
    least = backend.tally(logits, lse, table, lens, slots, fence, position, mass, mean, unit)
    backend.replace(planes_of(pool), table, slots, due, least)


def overwrite(
    backend: Backend,
    pool: Pool,
    buffers: Buffers,
    method: Method,
    layer: int,
    scope: Scope,
    position: Tensor,
    scores: Tensor | None,
    planes: list[str],
) -> None:
    """The same by the method's own `observe` and `priority`: its planes are written, and the new entry moves.

    position: int64 [R, 1], of the new token. scores: fp32 [R, H, m], its own, zero where a row has no entry. planes:
    names besides the positions.
    """
    words, size = buffers.words, pool.page_size
    table, n = scope.of(buffers.tables[layer]), scope.of(words["lens"][layer])[:, None]
    E, M = len(n), len(scope.entry)
    slots = (table[:, : -(-M // size), None].long() * size + scope.inside).flatten(1)[:, :M]
    there = scope.entry < n
    at = flat(pool.planes[POSITION.name])[:, 0][slots].long().where(there, ABSENT)
    seen = Seen(
        layer,
        scope.heads,
        at,
        cast(int, scope.of(position)),
        1,
        cast(int, scope.of(words["counts"][layer])[:, None]),
        None if scores is None else scope.of(scores)[..., :M],
        {POSITION.name: at[..., None]},
        flat(pool.k)[slots] if Needs.KEYS in method.needs else None,
        sequences=buffers.size,
    )
    if planes:
        old = (scope.entry < n - 1)[..., None]
        for name in planes:
            seen.planes[name] = flat(pool.planes[name])[slots].where(old, 0)
        target = slots.where(there, words["idle"]).flatten()
        for name, value in method.observe(seen).items():
            seen.planes[name] = value
            flat(pool.planes[name]).index_copy_(0, target, value.reshape(E * M, -1).to(pool.planes[name].dtype))
    least = Least.of(method.priority(seen).masked_fill(~there, torch.inf))
    source, due = (scope.of(words[name][layer]) for name in ("slots", "due"))
    backend.replace(planes_of(pool), table, source, due, least)
