"""One entry of each row onto another inside a captured step, in plain torch: no length and no slot is read here.

What engine/overwrite.py asks of a backend. The definitions row by row are in naive_paged.py, the kernels in
triton/replace.py and triton/tally.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvfoot.attention.padded import LOG2E
from kvfoot.attention.state import Least


def move(planes: Sequence[Tensor], source_R: Tensor, target_R: Tensor) -> None:
    """In every plane [pages, page_size, width]: the entry at slot source_R[r] of the arena to slot target_R[r].

    int64; onto itself where nothing is to move. No slot of one row is a slot of another.
    """
    for plane in planes:
        flat = plane.view(-1, plane.shape[2])
        flat.index_copy_(0, target_R, flat.index_select(0, source_R))


def replace(planes: Sequence[Tensor], table_RP: Tensor, source_R: Tensor, due_R: Tensor, least: Least) -> None:
    """The entry at slot source_R[r] goes where the one lies that row r loses, if due_R[r] is not 0."""
    size, (U, _) = planes[0].shape[1], least.index.shape
    best = least.value == least.value.amin(1, keepdim=True)
    lost = least.index.long().masked_fill(~best, 1 << 40).amin(1).repeat_interleave(len(source_R) // U)
    found = (due_R != 0) & (lost < table_RP.shape[1] * size)
    lost = lost.where(found, 0)[:, None]
    target = table_RP.long().gather(1, lost // size) * size + lost % size
    move(planes, source_R, target[:, 0].where(found, source_R))


def tally(
    logits_RHm: Tensor,
    lse_RH: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    source_R: Tensor,
    fence_R: Tensor,
    position: Tensor,
    mass: Tensor | None,
    mean: bool,
    unit: int,
) -> Least:
    """A step of attention mass (core/ranking.py, Mass): added up in the plane `mass`, and which entry has the least.

    logits_RHm: of `paged`, in base 2; lse_RH: natural logarithm of what they are divided by. source_R int64: slot of a
    row's newest entry, which has no mass yet; in an empty row of nobody's. position, mass: planes [pages, page_size,
    width]. mean: the mean over query heads; else a number each, of which the greatest counts. mass None: the mean over
    the heads of `unit` neighbouring rows. fence_R int64: entries at positions above it are not lost.
    """
    (R, H, M), size = logits_RHm.shape, position.shape[1]
    entry = torch.arange(M, device=lens_R.device)
    there = entry < lens_R[:, None]
    slots = table_RP.long()[:, : -(-M // size)].repeat_interleave(size, 1)[:, :M] * size + entry % size
    slots = slots.where(there, source_R[:, None])
    w = (logits_RHm - (lse_RH * LOG2E).masked_fill(lens_R[:, None] == 0, 0)[..., None]).exp2()
    w = w.masked_fill(~there[:, None], 0)
    if mass is None:
        value = w.view(R // unit, unit * H, M).mean(1)
    else:
        flat, newest = mass.view(-1, mass.shape[2]), (lens_R - 1).clamp(min=0)[:, None]
        old = flat[slots].masked_fill((entry >= newest)[..., None], 0)
        new = old + (w.mean(1)[..., None] if mean else w.mT)
        last = new.gather(1, newest[..., None].expand(-1, -1, new.shape[2]))  # what is written twice is the same
        flat.index_copy_(0, slots.flatten(), new.where(there[..., None], last).flatten(0, 1))
        value = new.amax(-1)
    kept = ~there | (position.view(-1)[slots] > fence_R[:, None])
    return Least.of(value.masked_fill(kept[::unit], torch.inf))
