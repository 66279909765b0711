"""Bounds of pages by kernels against their definition, and that against plain loops."""

from typing import Any

import pytest
import torch
from paged import DEVICE, ULP, make

from kvfoot.attention import naive_bounds
from kvfoot.attention.triton import bounds

LENS = [1, 16, 17, 0, 150, 97]
ROOM = 13
"""Places of a row, more than any has pages of 16."""


def given(head_size: int, group: int, page: int, dtype: torch.dtype) -> tuple[Any, torch.Tensor, list[torch.Tensor]]:
    """Rows, their lengths, and the bounds of their entries but the newest; behind them is what an earlier run left."""
    paged = make(LENS, head_size, group, 16, dtype)
    low, high = (torch.full((len(LENS), -(-ROOM * 16 // page), head_size), x, dtype=dtype) for x in (-7.0, 7.0))
    for r, n in enumerate(LENS):
        keys = paged.k[paged.table[r].long()].flatten(0, 1)[: max(n - 1, 0)].cpu()
        for at, part in enumerate(keys.split(page)):
            if len(part):
                low[r, at], high[r, at] = part.amin(0), part.amax(0)
    return paged, torch.tensor(LENS, device=DEVICE), [low.to(DEVICE), high.to(DEVICE)]


def slots(paged: Any) -> torch.Tensor:
    newest = (torch.tensor(LENS, device=DEVICE) - 1).clamp(min=0)
    return paged.table.long().gather(1, newest[:, None] // 16)[:, 0] * 16 + newest % 16


@pytest.mark.parametrize("how", [naive_bounds, bounds], ids=["plain", "kernels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("head_size", "page"), [(64, 16), (80, 5), (128, 32)])
def test_a_key_widens_the_bounds_of_its_page_alone(how: Any, dtype: torch.dtype, head_size: int, page: int) -> None:
    paged, lens, (low, high) = given(head_size, 1, page, dtype)
    before = low.clone(), high.clone()
    how.widen(low, high, paged.k, slots(paged), lens, page)
    for r, n in enumerate(LENS):
        keys = paged.k[paged.table[r].long()].flatten(0, 1)[:n]
        at = (n - 1) // page
        for own, old, of in ((low, before[0], torch.amin), (high, before[1], torch.amax)):
            rest = [i for i in range(own.shape[1]) if i != at or not n]
            assert torch.equal(own[r, rest], old[r, rest])
            if n:
                assert torch.equal(own[r, at], of(keys[at * page :], 0))


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(
    ("head_size", "group", "page", "dtype"),
    [
        (64, 1, 16, torch.float32),
        (80, 5, 5, torch.float16),
        (128, 4, 16, torch.bfloat16),
        (128, 4, 1, torch.float32),
        (256, 16, 16, torch.float32),
    ],
)
def test_what_pages_reach(mean: bool, head_size: int, group: int, page: int, dtype: torch.dtype) -> None:
    """-inf from the newest entry's page on, in an idle row everywhere; NaN behind a row's places is never read."""
    paged, lens, (low, high) = given(head_size, group, page, dtype)
    for r, n in enumerate(LENS):
        low[r, -(-n // page) :] = high[r, -(-n // page) :] = torch.nan
    q = paged.q[:, :, 0].contiguous()
    found = bounds.reach(q, low, high, lens, page, mean)
    expected = naive_bounds.reach(q.float(), low.nan_to_num(), high.nan_to_num(), lens, page, mean)
    whole = [max(n - 1, 0) // page for n in LENS]
    assert found.isfinite().sum(1).tolist() == whole
    assert torch.equal(found.isfinite(), expected.isfinite())
    size = float(expected[expected.isfinite()].abs().max())
    torch.testing.assert_close(found, expected, atol=ULP[torch.float32] * size, rtol=0)


def test_no_key_of_a_page_reaches_further() -> None:
    """And with pages of one entry the bound is the product itself."""
    for page in (1, 16):
        paged, lens, (low, high) = given(64, 3, page, torch.float32)
        q = paged.q[:, :, 0].contiguous()
        found = bounds.reach(q, low, high, lens, page, False)
        for r, n in enumerate(LENS):
            keys = paged.k[paged.table[r].long()].flatten(0, 1)[:n].float()
            exact = (q[r].float() @ keys.mT).amax(0)
            for at in range(max(n - 1, 0) // page):
                reached = float(exact[at * page : (at + 1) * page].max())
                assert found[r, at] >= reached - 1e-4
                assert page > 1 or abs(float(found[r, at]) - reached) < 1e-3
