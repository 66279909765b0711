"""Spreading retrieval over heads: while a batch is *routed*, each group of families has its own long-range heads.

Left alone, training puts all retrieval into one KV head (docs/recall.md), and any method that spares it loses nothing.
Restricting a random head does not help: it teaches a spare copy, and then no single head matters. So labour is divided:
in a routed batch a row sees far only through its group's heads (one early, one middle, one late); every other head
reads sinks and a block window. The finished model is ordinary full attention; the last phase trains it so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Head = tuple[int, int]  # (layer, KV head)

SINKS, BLOCK = 64, 128
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
    return tuple(tuple(heads[index] for index in range(len(heads)) if index % groups == group) for group in range(groups))


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


def block_mask(rows: int, length: int, group: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[rows * blocks, 1, group * BLOCK, SINKS + 2 * BLOCK] additive: own block causally, the one before, the sinks."""
    blocks = length // BLOCK
    i = torch.arange(BLOCK, device=device)
    own = (i[None, :] <= i[:, None]).expand(blocks, BLOCK, BLOCK)
    index = torch.arange(blocks, device=device)[:, None, None]
    before = (index >= 1).expand(blocks, BLOCK, BLOCK)
    sinks = (index >= 2).expand(blocks, BLOCK, SINKS)
    seen = torch.cat([sinks, before, own], -1).repeat(rows, group, 1)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


def near_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention to sinks and a block window. q [B, heads, T, D], k and v [B, kv_heads, T, D]; T in whole blocks.

    The query heads of a KV head are laid one after the other, so keys are never repeated. mask: `block_mask`.
    """
    batch, heads, length, dim = q.shape
    kv_heads = k.shape[1]
    group, blocks = heads // kv_heads, length // BLOCK
    q = q.reshape(batch, kv_heads, group, blocks, BLOCK, dim).permute(0, 3, 1, 2, 4, 5)
    q = q.reshape(batch * blocks, kv_heads, group * BLOCK, dim)

    def near(x: torch.Tensor) -> torch.Tensor:
        own = x.reshape(batch, kv_heads, blocks, BLOCK, dim)
        before = own.roll(1, 2)  # the first block's is masked
        sinks = x[:, :, None, :SINKS].expand(batch, kv_heads, blocks, SINKS, dim)
        return torch.cat([sinks, before, own], 3).transpose(1, 2).reshape(batch * blocks, kv_heads, -1, dim)

    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        out = F.scaled_dot_product_attention(q, near(k), near(v), attn_mask=mask.expand(-1, kv_heads, -1, -1))
    out = out.reshape(batch, blocks, kv_heads, group, BLOCK, dim).permute(0, 2, 3, 1, 4, 5)
    return out.reshape(batch, heads, length, dim)
