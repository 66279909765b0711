"""Writing: new entries into pages, survivors into fresh ones. Bits are moved, so results are equal, not close."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import DEVICE, make
from torch import Tensor

from kvfoot.attention import naive_paged
from kvfoot.attention.triton.append import append
from kvfoot.attention.triton.compact import compact
from kvfoot.core.errors import UsageError

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(9e4), b.nan_to_num(9e4))


@pytest.mark.parametrize("n", [1, 18, 33])
@pytest.mark.parametrize(
    ("D", "page", "dtype", "index"),
    [(64, 16, BF16, torch.int32), (80, 32, FP16, torch.int64), (96, 64, FP32, torch.int32)],
)
def test_append(D: int, page: int, dtype: torch.dtype, index: torch.dtype, n: int) -> None:
    """Across page borders, to an empty row, to a row that takes nothing; values with strides."""
    # every row has the pages for what it takes: two rows that wrote into one page would do so in any order
    x = make([n, max(100, 3 + n), page - 1 + n, page + 1, page + n], D, 1, page, dtype, index=index)
    start = torch.tensor([0, 3, page - 1, -1, page], device=DEVICE, dtype=index)
    new = torch.randn(2, n, 5, D, generator=torch.Generator().manual_seed(n)).to(DEVICE, dtype).transpose(1, 2)
    mine, theirs = (x.k.clone(), x.v.clone()), (x.k.clone(), x.v.clone())
    append(mine, x.table, start, (new[0], new[1]))
    for plane, values in zip(theirs, new, strict=True):
        naive_paged.append(plane, x.table, start, values)
    assert same(mine[0], theirs[0])
    assert same(mine[1], theirs[1])
    assert not same(mine[0], x.k)


def test_append_to_a_plane_of_one_value() -> None:
    x = make([40, 3], 64, 1, 16, FP32)
    mine = torch.full((len(x.k), 16, 1), -7, dtype=torch.int32, device=DEVICE)
    theirs = mine.clone()
    start, new = torch.tensor([14, 2], device=DEVICE), torch.arange(10, device=DEVICE, dtype=torch.int32).view(2, 5, 1)
    append((mine,), x.table, start, (new,))
    naive_paged.append(theirs, x.table, start, new)
    assert torch.equal(mine, theirs)


def test_entries_of_another_kind_are_refused() -> None:
    x = make([5], 64, 1, 16, FP32)
    with pytest.raises(UsageError, match=r"entries of torch.float16 \[64\] do not fit pages of torch.float32 \[64\]"):
        append((x.k,), x.table, x.lens, (x.q[:, 0].half(),))


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=4).filter(any),
    st.sampled_from([16, 32]),
    st.sampled_from([(64, BF16), (80, FP32), (1, torch.int32)]),
    st.randoms(use_true_random=False),
)
def test_compact(lens: list[int], page: int, plane: tuple[int, torch.dtype], random: object) -> None:
    """Any survivors, in any order, none at all, all; the sources stay as they are."""
    width, dtype = plane
    x = make(lens, 64, 1, page, FP32)
    generator = torch.Generator().manual_seed(random.randint(0, 1 << 30))  # type: ignore[attr-defined]
    counts = torch.tensor([random.randint(0, n) for n in lens])  # type: ignore[attr-defined]
    kept = torch.full((len(lens), max(1, int(counts.max()))), 10**6)
    for r, c in enumerate(counts.tolist()):
        kept[r, :c] = torch.randperm(lens[r], generator=generator)[:c].sort().values
    old = len(x.k)
    per_row = -(-int(kept.shape[1]) // page)
    order = torch.randperm(len(lens) * per_row, generator=generator).int() + old
    target = order.view(len(lens), per_row).to(DEVICE)
    arena = torch.randint(0, 1 << 14, (old + len(order), page, width), generator=generator).to(DEVICE, dtype)
    mine, theirs = (arena.clone(), arena.flip(2).clone()), (arena.clone(), arena.flip(2).clone())
    kept, counts = kept.to(DEVICE), counts.to(DEVICE)
    compact(mine if width > 1 else mine[:1], x.table, kept, counts, target)
    for p in theirs if width > 1 else theirs[:1]:
        naive_paged.compact(p, x.table, kept, counts, target)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[:old], b[:old])
