"""One entry goes for a new one in every row that is full, inside a replayed step: which one, the device alone knows."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from kvfoot.cache.pool import Pool
from kvfoot.core.hooks import ABSENT, POSITION, Method, Needs, Seen
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


def move(pool: Pool, source: Tensor, target: Tensor) -> None:
    """Entry source[i] to slot target[i], both int64 [E]: onto itself where nothing is to move."""
    for plane in (pool.k, pool.v, *pool.planes.values()):
        flat(plane).index_copy_(0, target, flat(plane).index_select(0, source))


def overwrite(
    pool: Pool,
    buffers: Buffers,
    method: Method,
    layer: int,
    scope: Scope,
    position: Tensor,
    scores: Tensor | None,
    planes: list[str],
) -> None:
    """After attention: the planes that the method keeps up are written, and the new entry goes where the lost one was.

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
    lost = method.priority(seen).masked_fill(~there, torch.inf).argmin(1, keepdim=True)
    source = scope.of(words["slots"][layer])
    due = scope.of(words["due"][layer]) > 0
    move(pool, source, slots.gather(1, lost)[:, 0].where(due, source))
