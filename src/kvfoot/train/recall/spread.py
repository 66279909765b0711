"""Spreading retrieval over heads: while a batch is *routed*, each group of families has its own long-range heads.

Left alone, training puts all retrieval into one KV head (docs/recall.md), and any method that spares it loses nothing.
Restricting a random head does not help: it teaches a spare copy, and then no single head matters. So labour is divided:
in a routed batch a row sees far only through its group's heads (one early, one middle, one late); every other head
reads its own block of tokens. The finished model is ordinary full attention; the last phase trains it so.
"""

from __future__ import annotations

from collections.abc import Callable

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


class Router:
    """Which KV heads see far, for every row of a routed batch."""

    def __init__(self, layers: int, kv_heads: int, groups: int) -> None:
        table = torch.zeros(groups, layers, kv_heads, dtype=torch.bool)
        for group, heads in enumerate(routes(layers, kv_heads, groups)):
            for layer, head in heads:
                table[group, layer, head] = True
        self.table = table
        self.far = [[head for head in range(kv_heads) if table[:, layer, head].any()] for layer in range(layers)]

    def to(self, device: torch.device, group: int) -> Router:
        """Tables on the device, so that a step moves nothing but the rows' groups. group: query heads a KV head."""
        self.table = self.table.to(device)
        self.keys = [torch.tensor(heads, device=device) for heads in self.far]
        self.queries = [
            torch.tensor([head * group + i for head in heads for i in range(group)], device=device)
            for heads in self.far
        ]
        return self

    def rows(self, group: torch.Tensor) -> torch.Tensor:
        """[rows, layers, kv_heads]: True where the head sees everything."""
        return self.table[group.to(self.table.device, non_blocking=True)]


def near_attention(attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offset: int) -> torch.Tensor:
    """Causal attention within blocks of `BLOCK` tokens; all [rows, heads, T, D], T in whole blocks.

    offset: where the second block begins, 0 <= offset < BLOCK; odd layers use half a block, so that what one layer cuts
    the next one joins. attend: causal attention over [n, heads, t, D]. No mask: it costs as little as a short batch.
    """
    if not offset:
        return _blocks(attend, q, k, v)
    first = attend(*(x[:, :, :offset].contiguous() for x in (q, k, v)))
    # padding at the end is in the future of everything that is kept
    rest = _blocks(attend, *(F.pad(x[:, :, offset:], (0, 0, 0, offset)) for x in (q, k, v)))
    return torch.cat([first, rest[:, :, : q.shape[2] - offset]], 2)


def _blocks(attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    rows, heads, length, dim = q.shape

    def cut(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(rows, heads, length // BLOCK, BLOCK, dim).transpose(1, 2).reshape(-1, heads, BLOCK, dim)

    out = attend(cut(q), cut(k), cut(v)).reshape(rows, length // BLOCK, heads, BLOCK, dim)
    return out.transpose(1, 2).reshape(rows, heads, length, dim)
