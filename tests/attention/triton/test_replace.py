"""The entry that goes: its slot told, found among candidates, or found by attention mass. Equal, ties included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import DEVICE, Paged, close, make
from torch import Tensor

from kvfoot.attention import naive_paged, overwrite
from kvfoot.attention.state import Least
from kvfoot.attention.triton.decode import decode_emitting
from kvfoot.attention.triton.replace import move, replace
from kvfoot.attention.triton.tally import BLOCK, tally

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def sides(x: Paged, *widths: int) -> list[Tensor]:
    """An int32 plane of width 1 and fp32 ones, NaN where keys are."""
    empty = x.k[..., :1].isnan()
    draw = torch.Generator().manual_seed(len(widths))
    planes = [torch.randn(*x.k.shape[:2], w, generator=draw).to(DEVICE).masked_fill(empty, torch.nan) for w in widths]
    numbers = torch.arange(x.k[..., :1].numel(), dtype=torch.int32, device=DEVICE).view(*x.k.shape[:2], 1)
    return [numbers, *planes]


def slot(x: Paged, r: int, j: int) -> int:
    return int(x.table[r, j // x.k.shape[1]]) * x.k.shape[1] + j % x.k.shape[1]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(9e4), b.nan_to_num(9e4)) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("D", "page", "dtype", "widths"),
    [(64, 16, BF16, ()), (80, 32, FP16, (1,)), (96, 64, FP32, (3,)), (128, 16, BF16, (1, 5, 2))],
)
def test_move(D: int, page: int, dtype: torch.dtype, widths: tuple[int, ...]) -> None:
    """Any number of planes, of keys and values alone too; onto itself where nothing moves."""
    x = make([page + 1, 3, 2 * page, 1], D, 1, page, dtype)
    planes = [x.k, x.v, *(sides(x, *widths) if widths else [])]
    source = torch.tensor([slot(x, 0, page), slot(x, 1, 2), slot(x, 2, 2 * page - 1), slot(x, 3, 0)], device=DEVICE)
    target = torch.tensor([slot(x, 0, 7), slot(x, 1, 2), slot(x, 2, page), slot(x, 3, 0)], device=DEVICE)
    mine, plain, theirs = ([p.clone() for p in planes] for _ in range(3))
    move(mine, source, target)
    overwrite.move(plain, source, target)
    naive_paged.move(theirs, source, target)
    assert same(mine, theirs)
    assert same(plain, theirs)
    assert not any(same([a], [b]) for a, b in zip(mine, planes, strict=True)), "every plane moved"


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 70), min_size=2, max_size=6).filter(lambda lens: len(lens) % 2 == 0),
    st.integers(1, 9),
    st.sampled_from([1, 2]),
    st.randoms(use_true_random=False),
)
def test_replace(lens: list[int], blocks: int, unit: int, random: object) -> None:
    """The least candidate, the first entry of equal ones; blocks without any; rows that are not due."""
    lens = [lens[i // unit * unit] for i in range(len(lens))]
    x = make(lens, 64, 1, 16, BF16)
    planes = [x.k, x.v, *sides(x, 2)]
    draw = random.randint  # type: ignore[attr-defined]
    value = torch.full((len(lens) // unit, blocks), torch.inf)
    index = torch.full((len(lens) // unit, blocks), 1 << 30, dtype=torch.int32)
    for u, n in enumerate(lens[::unit]):
        for c in range(draw(1, min(blocks, n))):
            value[u, c], index[u, c] = draw(0, 2), c * (n // blocks) if n >= blocks else c
        index[u, 0] = 0
    due = torch.tensor([draw(0, 1) for _ in lens], device=DEVICE)
    source = torch.tensor([slot(x, r, n - 1) for r, n in enumerate(lens)], device=DEVICE)
    least = Least(value.to(DEVICE), index.to(DEVICE))
    mine, plain, theirs = ([p.clone() for p in planes] for _ in range(3))
    replace(mine, x.table, source, due, least)
    overwrite.replace(plain, x.table, source, due, least)
    naive_paged.replace(theirs, x.table, source, due, least)
    assert same(mine, theirs)
    assert same(plain, theirs)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_numbers_that_are_none_move_nothing() -> None:
    """A row of NaN is reported elsewhere (NotFinite); here it must not send an entry anywhere."""
    x = make([5, 9], 64, 1, 16, FP32)
    planes = [x.k, x.v]
    least = Least(torch.full((2, 1), torch.nan, device=DEVICE), torch.zeros(2, 1, dtype=torch.int32, device=DEVICE))
    source = torch.tensor([slot(x, 0, 4), slot(x, 1, 8)], device=DEVICE)
    for run in (replace, overwrite.replace):
        found = [p.clone() for p in planes]
        run(found, x.table, source, torch.ones(2, device=DEVICE, dtype=torch.int64), least)
        assert same(found, planes)


TALLIES = [
    # D, G, page, lengths, unit, width of the mass
    (64, 3, 16, [33, 1, 0, 70], 1, 1),
    (64, 5, 32, [90, 0, 31, 32], 1, 5),
    (80, 1, 16, [17, 16, 15, 1], 1, 1),
    (64, 2, 16, [40, 40, 0, 0, 7, 7], 2, 0),
    (64, 1, 16, [BLOCK + 3, 2, BLOCK], 1, 1),
    (64, 3, 16, [BLOCK + 30] * 3, 3, 0),
]


@pytest.mark.parametrize(("D", "G", "page", "lens", "unit", "width"), TALLIES)
def test_tally(D: int, G: int, page: int, lens: list[int], unit: int, width: int) -> None:
    """Mass after a step, and the entry that goes: over blocks, with protected entries, empty rows, NaN in the slack."""
    x = make(lens, D, G, page, FP32)
    R, most = len(lens), x.most + 2
    position = torch.full((*x.k.shape[:2], 1), -(1 << 20), dtype=torch.int32, device=DEVICE)
    mass = torch.full((*x.k.shape[:2], max(width, 1)), torch.nan, device=DEVICE)
    draw = torch.Generator().manual_seed(R + G)
    order = torch.empty(0)
    for r, n in enumerate(lens):
        if r % unit == 0:
            order = torch.randperm(n, generator=draw)
        for j in range(n):
            position[x.table[r, j // page], j % page] = int(order[j])
            if j < n - 1:
                mass[x.table[r, j // page], j % page] = torch.rand(max(width, 1), generator=draw).to(DEVICE) / 8
    fence = torch.tensor([max(n // 2, 1) for n in lens], device=DEVICE)
    state, logits = decode_emitting(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale, most, logits=True)
    # R slots past the arena's own pages serve empty rows.
    nobody = len(x.k) * page
    position, mass = (torch.cat([p, p[:1]]).contiguous() for p in (position, mass))
    source = torch.tensor([slot(x, r, n - 1) if n else nobody for r, n in enumerate(lens)], device=DEVICE)
    lse = state.lse + 0.25  # a normaliser of more than the entries: sinks have their share
    given = (logits, lse, x.table, x.lens)
    more = (fence, position)
    left = [mass.clone() for _ in range(3)]
    planes = [None, None, None] if not width else left
    mine = tally(*given, source, *more, planes[0], width == 1, unit)
    plain = overwrite.tally(*given, source, *more, planes[1], width == 1, unit)
    lost = naive_paged.tally(*given, *more, planes[2], width == 1, unit)
    inside = slice(0, len(mass) - 1)
    assert close(left[0][inside].nan_to_num(7.0), left[2][inside].nan_to_num(7.0), FP32)
    assert close(left[1][inside].nan_to_num(7.0), left[2][inside].nan_to_num(7.0), FP32)
    for found in (mine, plain):
        for u, expected in enumerate(lost):
            if expected >= 0:
                candidates = zip(found.value[u].tolist(), found.index[u].tolist(), strict=True)
                assert min(candidates)[1] == expected


@pytest.mark.parametrize("run", [tally, overwrite.tally])
def test_where_everything_is_protected_the_first_entry_goes(run: object) -> None:
    x = make([20], 64, 2, 16, FP32)
    position = torch.arange(x.k[..., :1].numel(), dtype=torch.int32, device=DEVICE).view(*x.k.shape[:2], 1)
    state, logits = decode_emitting(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale, 20, logits=True)
    fence, source = torch.tensor([-1], device=DEVICE), torch.tensor([slot(x, 0, 19)], device=DEVICE)
    least = run(logits, state.lse, x.table, x.lens, source, fence, position, None, True, 1)  # type: ignore[operator]
    planes = [x.k.clone(), x.v.clone()]
    replace(planes, x.table, source, torch.ones(1, dtype=torch.int64, device=DEVICE), least)
    assert torch.equal(planes[0].view(-1, 64)[slot(x, 0, 0)], x.k.view(-1, 64)[slot(x, 0, 19)])
