"""Decode attention over ragged rows in plain torch whose shapes follow from the tables alone: no length is read here.

The definition of what a captured step calls. Every row is gathered to the width of its table and masked by its length
on the device, so it reads more than it needs; kernels take the same arguments and do not (triton/backend.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.state import Least, State

LOG2E = 1.4426950408889634


def planned(lens_LR: Tensor, head_dim: int, dtype: torch.dtype) -> Any:
    """What `paged` wants prepared for all layers of a step at once: nothing."""
    return None


def paged(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    *,
    plan: Any = None,
    width: int = 0,
    read: Tensor | None = None,
    logits: bool = False,
) -> tuple[State, Tensor | None]:
    """One query per row and head over the row's first lens_R entries: out fp32 [R, H, D], lse fp32 [R, H].

    read: int64 [R, K], of a row's entries the first lens_R of these, instead. plan is then not of use.
    table_RP: page numbers, whatever past a row's own; lens_R on the device. With `width`, at least every length: the
    softmax weights too, fp32 [R, H, width], 0 beyond a row's entries; or, with `logits`, the logits in base 2 (times
    log2 e), anything beyond. An empty row has out = 0, lse = -inf.
    """
    if read is not None:
        size = k_pages.shape[1]
        table_RP = table_RP.long().gather(1, read // size) * size + read % size
        k_pages, v_pages = (x.view(-1, 1, x.shape[2]) for x in (k_pages, v_pages))
    R, P = table_RP.shape
    size = k_pages.shape[1]
    index = table_RP.reshape(-1).long()
    absent = torch.arange(P * size, device=lens_R.device) >= lens_R[:, None]
    # What lies past a row's end may be NaN.
    k, v = (
        x.index_select(0, index).view(R, P * size, -1).float().masked_fill(absent[..., None], 0)
        for x in (k_pages, v_pages)
    )
    s_RHm = torch.bmm(q_RHD.float() * scale, k.mT).masked_fill(absent[:, None], -torch.inf)
    lse = s_RHm.logsumexp(-1)
    p = (s_RHm - lse.clamp(min=-1e30)[..., None]).exp()
    weights = None
    if width:
        weights = s_RHm * LOG2E if logits else p
        weights = weights[..., :width] if width <= P * size else torch.nn.functional.pad(weights, (0, width - P * size))
    return State(torch.bmm(p, v), lse), weights


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
