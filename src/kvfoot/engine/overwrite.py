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

    heads: int64 [E], their KV heads. entries: the most that one of them may have, the new one included.
    """

    rows: Tensor | None
    heads: Tensor
    entries: int

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
    pool: Pool, buffers: Buffers, method: Method, layer: int, scope: Scope, scores: Tensor | None, planes: list[str]
) -> None:
    """After attention: the planes that the method keeps up are written, and the new entry goes where the lost one was.

    scores: fp32 [R, H, m] of the new token, zero where a row has no entry. planes: names besides the positions.
    """
    words, size = buffers.words, pool.page_size
    table, n = scope.of(buffers.tables[layer]), scope.of(words["lens"][layer])[:, None]
    E, M = len(n), scope.entries
    inside = torch.arange(size, device=n.device)
    slots = (table[:, : -(-M // size), None].long() * size + inside).flatten(1)[:, :M]
    entry = torch.arange(M, device=n.device)
    there, old = entry < n, entry < n - 1
    position = flat(pool.planes[POSITION.name])[:, 0][slots].long().where(there, ABSENT)
    seen = Seen(
        layer,
        scope.heads,
        position,
        cast(int, scope.of(words["position"].repeat_interleave(buffers.rows // buffers.size))[:, None]),
        1,
        cast(int, scope.of(words["counts"][layer])[:, None]),
        None if scores is None else scope.of(scores)[..., :M],
        {POSITION.name: position[..., None]},
        flat(pool.k)[slots] if Needs.KEYS in method.needs else None,
        sequences=buffers.size,
    )
    for name in planes:
        seen.planes[name] = flat(pool.planes[name])[slots].where(old[..., None], 0)
    if planes:
        target = slots.where(there, words["idle"]).flatten()
        for name, value in method.observe(seen).items():
            seen.planes[name] = value
            flat(pool.planes[name]).index_copy_(0, target, value.reshape(E * M, -1).to(pool.planes[name].dtype))
    lost = method.priority(seen).masked_fill(~there, torch.inf).argmin(1, keepdim=True)
    source = scope.of(words["slots"][layer])
    due = scope.of(words["due"][layer]) > 0
    move(pool, source, slots.gather(1, lost)[:, 0].where(due, source))
