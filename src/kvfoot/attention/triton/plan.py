"""Work for the decode kernel, made on the device: equal shares of tiles, whatever the rows' lengths (naive_paged.plan).

One launch plans all layers of a step. Nothing is copied to the host, and the grid does not depend on the lengths, so
the plan is part of a captured step. A share is a run of tiles, so it spans few rows, and a program's partial result of
a row has a place of its own: slot program + row, since along the run one of both grows at every step.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common


@triton.jit
def plan_kernel(
    lens,
    tiles,
    first,
    rows,
    programs,
    TILE: tl.constexpr,
    RB: tl.constexpr,
    PB: tl.constexpr,
):
    layer = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    lens += layer * rows
    tiles += layer * (rows + 1)
    first += layer * (programs + 1)
    r = tl.arange(0, RB)
    total = 0
    for at in range(0, rows, RB):
        n = tl.load(lens + at + r, mask=at + r < rows, other=0).to(tl.int32)
        total += tl.sum((n + TILE - 1) // TILE, 0)
    share = tl.maximum((total + programs - 1) // programs, 1)
    p = block * PB + tl.arange(0, PB)
    start = p * share
    before = tl.zeros([PB], tl.int32)
    done = 0
    for at in range(0, rows, RB):
        inside = at + r < rows
        n = tl.load(lens + at + r, mask=inside, other=0).to(tl.int32)
        count = (n + TILE - 1) // TILE
        upto = done + tl.cumsum(count, 0)
        if block == 0:
            tl.store(tiles + at + r + 1, upto, mask=inside)
        before += tl.sum(((upto[None, :] <= start[:, None]) & inside[None, :]).to(tl.int32), 1)
        done += tl.sum(count, 0)
    tl.store(first + p, before, mask=p <= programs)
    if block == 0:
        tl.store(tiles + r, r, mask=r < 1)


@dataclass(frozen=True)
class Plan:
    """tiles int32 [L, R + 1], first int32 [L, programs + 1]: see naive_paged.plan. tile: entries of one."""

    tiles: Tensor
    first: Tensor
    tile: int

    @property
    def programs(self) -> int:
        return self.first.shape[-1] - 1

    def layer(self, index: int) -> "Plan":
        return Plan(self.tiles[index : index + 1], self.first[index : index + 1], self.tile)


def plan(lens_LR: Tensor, tile: int, programs: int) -> Plan:
    """The plan of L layers with lengths lens_LR, int32 or int64 on the device: one launch, no synchronisation."""
    lens = lens_LR.contiguous()
    layers, rows = lens.shape
    tiles = common.scratch((layers, rows + 1), torch.int32, lens.device)
    first = common.scratch((layers, programs + 1), torch.int32, lens.device)
    block = 64
    plan_kernel[(layers, triton.cdiv(programs + 1, block))](
        lens, tiles, first, rows, programs, TILE=tile, RB=min(common.padded(rows), 256), PB=block, num_warps=4
    )
    return Plan(tiles, first, tile)
