"""What a refresh selects by kernels, against plain loops: ties, flat and peaked rows, rows that do not fire."""

from collections.abc import Callable

import pytest
import torch
from paged import DEVICE
from torch import Tensor

from kvfoot.attention import naive_choice
from kvfoot.attention.triton import select, topk, vote

AS_THEY_ARE = {"BLOCK": topk.BLOCK, "FINE": topk.FINE}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs a row without rows of thousands."""
    monkeypatch.setattr(topk, "BLOCK", 128)
    monkeypatch.setattr(topk, "FINE", 256)


def flat(s: Tensor) -> Tensor:
    return s * 1e-3


def peaked(s: Tensor) -> Tensor:
    return s * 90


def tied(s: Tensor) -> Tensor:
    return s.round()


def equal(s: Tensor) -> Tensor:
    return s * 0 + 3


@pytest.mark.parametrize(
    ("shape", "heads", "count", "kernel", "sink", "leaving"),
    [
        (torch.Tensor.clone, 4, 37, 7, 0, 12),
        (torch.Tensor.clone, 3, 130, 1, 4, 5),
        (flat, 2, 64, 7, 0, 9),
        (peaked, 2, 64, 5, 0, 64),
        (peaked, 7, 1, 3, 0, 1),
        (tied, 2, 100, 7, 20, 30),
        (equal, 2, 50, 7, 3, 7),
        (equal, 1, 310, 3, 1, 50),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_the_best_of_each_row(
    shape: Callable[[Tensor], Tensor], heads: int, count: int, kernel: int, sink: int, leaving: int
) -> None:
    """Lengths around a block, of fewer entries than are wanted, of one, of none; what lies beyond is NaN."""
    lens = torch.tensor([321, 129, 130, 0, 1, 2])
    generator = torch.Generator().manual_seed(heads + count)
    score = torch.full((len(lens), heads, 333), torch.nan)
    lse = torch.full((len(lens), heads), torch.nan)
    for r, n in enumerate(lens.tolist()):
        if n:
            score[r, :, :n] = shape(3 * torch.randn(heads, n, generator=generator))
            lse[r] = (score[r, :, :n] / 1.4426950408889634).logsumexp(-1)
    found = select.best(score.to(DEVICE), lse.to(DEVICE), lens.to(DEVICE), count, kernel, sink, leaving).cpu()
    expected = naive_choice.best(score, lse, lens, count, kernel, sink, leaving)
    for row, n, (worst, others) in zip(found.tolist(), lens.tolist(), expected, strict=True):
        assert row[count] == max(n - 1, 0)
        assert row[: len(worst)] == worst
        assert sorted(row[len(worst) : len(worst) + len(others)]) == others


@pytest.mark.parametrize("spread", [0.02, 1.4, 40.0])
def test_few_are_compared_with_each_other(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    """Blocks and bins as on a GPU: beside those that may leave, a bracket is a thousandth of a row."""
    for name, value in AS_THEY_ARE.items():
        monkeypatch.setattr(topk, name, value)
    n, count, leaving, made = 20000, 2500, 12, []
    room = topk.Weights.room
    monkeypatch.setattr(topk.Weights, "room", lambda *given, **named: made.append(room(*given, **named)) or made[-1])
    score = spread * torch.randn(2, 2, n, generator=torch.Generator().manual_seed(7))
    lse, lens = (score / 1.4426950408889634).logsumexp(-1), torch.tensor([n, n - 4095])
    found = select.best(score.to(DEVICE), lse.to(DEVICE), lens.to(DEVICE), count, 7, 0, leaving).cpu()
    for row, (worst, others) in zip(
        found.tolist(), naive_choice.best(score, lse, lens, count, 7, 0, leaving), strict=True
    ):
        assert row[:leaving] == worst
        assert sorted(row[leaving:count]) == others
    assert leaving <= int(made[0].left.min()) <= int(made[0].left.max()) <= (100 if spread > 0.1 else 600)


def test_its_order_is_the_same_every_time() -> None:
    generator = torch.Generator().manual_seed(1)
    score = torch.randn(2, 2, 300, generator=generator).to(DEVICE)
    lse, lens = score.logsumexp(-1), torch.tensor([300, 290], device=DEVICE)
    one, two = (select.best(score, lse, lens, 120, 7, 0, 8) for _ in range(2))
    assert torch.equal(one, two)
    assert [row.unique().numel() for row in one] == [121, 121]


@pytest.mark.parametrize(
    ("sequences", "rows", "heads", "first", "last", "count", "spread"),
    [(3, 2, 3, 4, 9, 40, 2.0), (2, 1, 7, 0, 1, 1, 2.0), (1, 4, 2, 20, 130, 60, 25.0)],
)
def test_what_all_heads_vote_for(
    sequences: int, rows: int, heads: int, first: int, last: int, count: int, spread: float
) -> None:
    """A sequence that does not fire, contested entries around a block; what lies beyond is NaN."""
    lens = torch.tensor([300, 0, 142][:sequences]).repeat_interleave(rows)
    generator = torch.Generator().manual_seed(heads)
    score = torch.full((len(lens), heads, 333), torch.nan)
    for r, n in enumerate(lens.tolist()):
        score[r, :, :n] = spread * torch.randn(heads, n, generator=generator)
    lse = (score / 1.4426950408889634).nan_to_num(-torch.inf).logsumexp(-1)
    given = [x.to(DEVICE) for x in (score, lse, lens)]
    found = vote.vote(*given, sequences, first, last, count).cpu()
    expected = naive_choice.vote(score, lens, sequences, first, last, count)
    assert found.shape == (sequences, count)
    for row, n, (best, votes) in zip(found.tolist(), lens[::rows].tolist(), expected, strict=True):
        if n:
            near = votes.sort().values[[-count, -count - 1]]
            assert float(near[0] / near[1]) > 1 + 1e-5, "a margin, or the test says nothing"
            assert sorted(row) == best
