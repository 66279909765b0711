"""A refresh's choice at the sizes it is made for, against torch's sort; the same when replayed, and beside products."""

import pytest
import torch
from torch import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
pytest.importorskip("triton")
LOG2E = 1.4426950408889634


def drawn(rows: int, n: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(rows + n)
    score = spread * torch.randn(rows, 4, n, generator=generator, device="cuda")
    lens = torch.full((rows,), n, device="cuda")
    lens[1], lens[2] = n - 777, 0
    for r, m in enumerate(lens.tolist()):
        score[r, :, m:] = torch.nan
    return score, (score / LOG2E).nan_to_num(-torch.inf).logsumexp(-1), lens


def expected(score: Tensor, lse: Tensor, m: int, count: int) -> Tensor:
    """Of one row, worst first."""
    own = (score[:, :m] - (lse * LOG2E)[:, None]).amax(0)
    pooled = torch.nn.functional.max_pool1d(own[None, None], 7, 1, 3)[0, 0]
    order = own.argsort(stable=True)
    return order[pooled[order].argsort(stable=True)][m - count :]


@pytest.mark.parametrize(
    ("rows", "n", "spread"), [(8, 131072, 1.4), (64, 32768, 1.4), (8, 32768, 1e-3), (8, 32768, 60.0), (3, 5000, 0.0)]
)
def test_the_best_of_long_rows(rows: int, n: int, spread: float) -> None:
    from kvfoot.attention.triton import select

    score, lse, lens = drawn(rows, n, spread)
    count, leaving = n // 8, 64
    found = select.best(score, lse, lens, count, 7, 0, leaving)
    for r in (0, 1, rows - 1):
        if lens[r]:
            wanted = expected(score[r], lse[r], int(lens[r]) - 1, count)
            assert torch.equal(found[r, :leaving], wanted[:leaving])
            assert torch.equal(found[r, :count].sort().values, wanted.sort().values)
            assert int(found[r, count]) == int(lens[r]) - 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = select.best(score, lse, lens, count, 7, 0, leaving)
    graph.replay()
    torch.cuda.synchronize()
    live = lens > 0
    assert torch.equal(again[live], found[live])


@pytest.mark.parametrize("options", [{"schedule": "fixed", "every": 3}, {"every": 2, "similarity": 0.9}], ids=str)
def test_a_choice_beside_the_products_is_that_in_line(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    """Rows of thousands, whose choice outlasts what a tiny layer does meanwhile: tokens and lists, step after step."""
    import tiny
    from kvfoot.engine import aside
    from replayed import decode

    model = tiny.make("llama", layers=4, kv_heads=2, group=3, head_dim=64, hidden=96, positions=8192).to("cuda")
    found = []
    for beside in (True, False):
        monkeypatch.setattr(aside, "BESIDE", beside)
        found.append(
            decode(
                model,
                "refreshkv",
                dict(options),
                lengths=(6000, 6000, 2500),
                new=40,
                page_size=16,
                backend="triton",
                record=True,
                budget=700,
            )
        )
    assert found[0].steps == 39
    assert found[0].tokens == found[1].tokens
    for mine, theirs in zip(found[0].sequences, found[1].sequences, strict=True):
        for place, state in mine.reading.items():
            assert torch.equal(state.slots, theirs.reading[place].slots)
