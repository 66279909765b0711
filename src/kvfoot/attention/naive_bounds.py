"""Bounds of the keys of pages, in plain torch: what a page's keys could reach with a query, and how bounds grow.

Legend: R rows, H query heads per row, P pages, D head size; low_RPD, high_RPD: the least and the greatest value of
every channel of a page's keys. Pages here are a method's, not the cache's. No length is read: a captured step calls it.
"""

import torch
from torch import Tensor


def upper(q_RHD: Tensor, low_RPD: Tensor, high_RPD: Tensor) -> Tensor:
    """No key of a page has a greater q k, fp32 [R, H, P] (Quest, section 3.3: the bound takes each channel's best)."""
    q = q_RHD.float()
    return q.clamp(min=0) @ high_RPD.float().mT + q.clamp(max=0) @ low_RPD.float().mT


def reach(q_RHD: Tensor, low_RPD: Tensor, high_RPD: Tensor, lens_R: Tensor, page: int, mean: bool) -> Tensor:
    """Upper bounds joined over query heads, by their greatest or their `mean`: fp32 [R, P], -inf from the page of the
    newest of lens_R entries on.
    """
    bound = upper(q_RHD, low_RPD, high_RPD)
    found = bound.mean(1) if mean else bound.amax(1)
    number = torch.arange(found.shape[1], device=lens_R.device)
    return found.masked_fill(number >= ((lens_R - 1) // page)[:, None], -torch.inf)


def widen(low_RPD: Tensor, high_RPD: Tensor, k_pages: Tensor, slots_R: Tensor, lens_R: Tensor, page: int) -> None:
    """Every row's newest key, which lies in slots_R of the arena, into the bounds of its page, in place. The first of a
    page replaces what was there; rows of length 0 stay as they are.
    """
    key_RD = k_pages.view(-1, k_pages.shape[2]).index_select(0, slots_R)
    newest = (lens_R - 1).clamp(min=0)
    at = (newest // page)[:, None, None].expand(-1, 1, low_RPD.shape[2])
    first, live = (newest % page == 0)[:, None], (lens_R > 0)[:, None]
    for bound, join in ((low_RPD, torch.minimum), (high_RPD, torch.maximum)):
        old = bound.gather(1, at)[:, 0]
        new = torch.where(live, torch.where(first, key_RD, join(old, key_RD)), old)
        bound.scatter_(1, at, new[:, None])
