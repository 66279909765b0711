"""Attention by lengths on the device against its definition row by row: NaN in the slack, rows without an entry."""

import pytest
import torch

from kvfoot.attention import naive_paged, padded
from kvfoot.attention.backend import choose


@pytest.mark.parametrize("page", [1, 3, 16])
@pytest.mark.parametrize("width", [0, 20, 64])
def test_ragged_rows(page: int, width: int) -> None:
    generator = torch.Generator().manual_seed(page + width)
    lens = torch.tensor([1, 0, page, page + 1, 19])
    P, D = 19 // page + 2, 8
    k, v = (torch.full((5 * P, page, D), torch.nan) for _ in range(2))
    table = torch.randperm(5 * P, generator=generator).view(5, P)
    for r, n in enumerate(lens.tolist()):
        for j in range(n):
            for x in (k, v):
                x[table[r, j // page], j % page] = torch.randn(D, generator=generator)
    q = torch.randn(5, 3, D, generator=generator)
    expected = naive_paged.decode(q, k, v, table, lens, 0.4)
    state, weights = padded.paged(q, k, v, table.int(), lens, 0.4, width=width)
    assert torch.allclose(state.out, expected.out, atol=1e-6)
    assert torch.allclose(state.lse, expected.lse, atol=1e-6)
    if width:
        assert weights is not None
        assert torch.allclose(weights, naive_paged.weights(q, k, table, lens, 0.4, width), atol=1e-6)
    else:
        assert weights is None


def test_lists_of_entries() -> None:
    generator = torch.Generator().manual_seed(4)
    k, v = (torch.randn(12, 4, 8, generator=generator) for _ in range(2))
    table, q = torch.randperm(12, generator=generator).view(3, 4), torch.randn(3, 2, 8, generator=generator)
    read = torch.stack([torch.randperm(16, generator=generator)[:9] for _ in range(3)])
    counts = torch.tensor([9, 0, 4])
    expected = naive_paged.decode(q, k, v, table, counts, 0.4, read)
    state, weights = padded.paged(q, k, v, table.int(), counts, 0.4, width=9, read=read)
    assert torch.allclose(state.out, expected.out, atol=1e-6)
    assert torch.allclose(state.lse, expected.lse, atol=1e-6)
    assert weights is not None
    assert torch.allclose(weights, naive_paged.weights(q, k, table, counts, 0.4, 9, read), atol=1e-6)


def test_every_backend_has_it() -> None:
    for name in ("naive", "sdpa", "triton"):
        if name == "triton":
            pytest.importorskip("triton")
        backend = choose(name)
        assert callable(backend.paged)
        assert callable(backend.planned)
