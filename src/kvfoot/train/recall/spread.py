"""Spreading retrieval over heads: while a batch is *routed*, each group of families has its own long-range heads.

Left alone, training puts all retrieval into one KV head (docs/recall.md), and any method that spares it loses nothing.
Restricting a random head does not help: it teaches a spare copy, and then no single head matters. So labour is divided:
in a routed batch a row sees far only through its group's heads (one early, one middle, one late); every other head
reads its own block of tokens. The finished model is ordinary full attention, and most batches of plan `single` are so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

Head = tuple[int, int]  # (layer, KV head)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

BLOCK = 256
# a group's heads: early, middle, late; for 8 layers of 3 KV heads
ROUTES: tuple[tuple[Head, ...], ...] = (
    ((2, 0), (4, 0), (6, 1)),
    ((3, 0), (5, 0), (7, 0)),
    ((3, 1), (5, 1), (7, 1)),
    ((3, 2), (6, 0), (7, 2)),
    ((2, 1), (4, 1), (6, 2)),
)


def routes(layers: int, kv_heads: int, groups: int) -> tuple[tuple[Head, ...], ...]:
    """`ROUTES` for the released shape; for another, the heads of the upper layers dealt out in turn."""
    if (layers, kv_heads, groups) == (8, 3, len(ROUTES)):
        return ROUTES
    heads = [(layer, head) for layer in range(layers // 4, layers) for head in range(kv_heads)]
    return tuple(
        tuple(heads[index] for index in range(len(heads)) if index % groups == group) for group in range(groups)
    )


class Split(NamedTuple):
    """The rows of a routed batch by group: indices on the device, one tensor a group, empty where it has no row."""

    rows: tuple[torch.Tensor, ...]


class Router:
    """Which KV heads see far, for every group of families. `far[layer]`: (KV head, group), a head has one group."""

    def __init__(self, layers: int, kv_heads: int, groups: int) -> None:
        self.groups = groups
        owners = {head: group for group, heads in enumerate(routes(layers, kv_heads, groups)) for head in heads}
        self.far = [
            [(head, owners[layer, head]) for head in range(kv_heads) if (layer, head) in owners]
            for layer in range(layers)
        ]
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> Router:
        self.device = device
        return self

    def split(self, group: torch.Tensor) -> Split:
        """group [rows], on the CPU: the group of each row, so that no step waits for the device."""
        found = [(group == index).nonzero()[:, 0] for index in range(self.groups)]
        return Split(tuple(rows.to(self.device, non_blocking=True) for rows in found))


def far_mask(router: Router, layer: int, split: Split, rows: int, length: int, kv_heads: int) -> torch.Tensor:
    """What `routed_attention` lets every KV head see: [rows, kv_heads, T, T], True for seen. For tests and pictures."""
    at = torch.arange(length)
    causal = at[None] <= at[:, None]
    block = (at - offset_of(layer)).div(BLOCK, rounding_mode="floor")
    seen = (causal & (block[:, None] == block[None])).repeat(rows, kv_heads, 1, 1)
    for head, group in router.far[layer]:
        seen[split.rows[group].cpu(), head] = causal
    return seen


def offset_of(layer: int) -> int:
    """Odd layers use half a block first, so that what one layer cuts the next one joins."""
    return BLOCK // 2 if layer % 2 else 0


def routed_attention(
    near: Attend, full: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, owners: list[tuple[int, int]],
    split: Split, offset: int,
) -> torch.Tensor:  # fmt: skip
    """q [rows, H, T, D], k and v [rows, kv, T, D]: near attention for every head; an owner's rows see far through it.

    A group is a fifth of the rows and has one head in a layer, so full attention is computed for an eighth of what a
    free batch needs. near, full: causal attention over [n, heads, t, D] (full: with varying n).
    """
    group = q.shape[1] // k.shape[1]

    def spread(x: torch.Tensor) -> torch.Tensor:  # one copy, in the order [rows, T, heads, D] that blocks are cut from
        return x.transpose(1, 2).repeat_interleave(group, 2).transpose(1, 2)

    out = near_attention(near, q, spread(k), spread(v), offset)
    for head, owner in owners:
        rows = split.rows[owner]
        if not len(rows):
            continue
        queries = torch.arange(head * group, (head + 1) * group, device=q.device)
        keys, values = (x[:, head : head + 1].index_select(0, rows).repeat_interleave(group, 1) for x in (k, v))
        seen = full(q[:, head * group : (head + 1) * group].index_select(0, rows), keys, values)
        out = out.index_put((rows[:, None], queries[None]), seen.to(out.dtype))
    return out


def near_attention(attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offset: int) -> torch.Tensor:
    """Causal attention within blocks of `BLOCK` tokens; all [rows, heads, T, D], T in whole blocks.

    offset: where the second block begins, 0 <= offset < BLOCK. attend: causal attention over
    [n, heads, t, D]. No mask: it costs as little as a short batch.
    """
    if not offset:
        return _blocks(attend, q, k, v)
    first = attend(*(x[:, :, :offset].contiguous() for x in (q, k, v)))
    # padding at the end is in the future of everything that is kept
    later = (F.pad(x.transpose(1, 2)[:, offset:], (0, 0, 0, 0, 0, offset)).transpose(1, 2) for x in (q, k, v))
    rest = _blocks(attend, *later)
    return torch.cat([x.transpose(1, 2) for x in (first, rest[:, :, : q.shape[2] - offset])], 1).transpose(1, 2)


def _blocks(attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    rows, heads, length, dim = q.shape

    def cut(x: torch.Tensor) -> torch.Tensor:  # a view where x lies as [rows, T, heads, D]
        return x.transpose(1, 2).reshape(-1, BLOCK, heads, dim).transpose(1, 2)

    return attend(cut(q), cut(k), cut(v)).transpose(1, 2).reshape(rows, length, heads, dim).transpose(1, 2)
