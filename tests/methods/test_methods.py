"""What the papers say of each method, on scores made by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kvfoot.core.hooks import Keep, Seen
from kvfoot.core.registry import method
from kvfoot.methods.evict.random import uniform
from kvfoot.methods.tools import join, pool


def seen(scores: Tensor | None, keep: int, m: int | None = None, **more: Any) -> Seen:
    """Positions 0 .. m - 1, all of one pass."""
    m = m or scores.shape[2]  # type: ignore[union-attr]
    rows = 1 if scores is None else scores.shape[0]
    state = Seen(0, torch.arange(rows), torch.arange(m).expand(rows, m), 0, m, keep, scores)
    for name, value in more.items():
        setattr(state, name, value)
    return state


def kept(keep: Keep, m: int) -> list[list[int]]:
    if keep.kept is not None:
        assert (keep.kept.diff(dim=1) > 0).all(), "not ascending"
        return keep.kept.tolist()
    assert keep.lost is not None
    return [[i for i in range(m) if i != gone] for gone in keep.lost.tolist()]


def needle(m: int, at: int) -> Tensor:
    """Three query heads; only the second one looks at the needle."""
    scores = torch.full((1, 3, m), 0.01)
    scores[0, 1, at] = 5.0
    return scores


def test_keep_top() -> None:
    priority = torch.tensor([[3.0, 1.0, 2.0, 5.0]])
    assert kept(Keep.top(priority, 2), 4) == [[0, 3]]
    assert Keep.top(priority, 3).lost is not None
    assert kept(Keep.top(priority, 3), 4) == [[0, 2, 3]]
    assert kept(Keep.top(torch.tensor([[float("inf"), 9.0, float("inf")]]), 2), 3) == [[0, 2]]


def test_snapkv_keeps_a_planted_needle_and_its_neighbours() -> None:
    chosen = method("snapkv", {"window": 4})
    found = kept(chosen.keep(seen(needle(40, 17), 9)), 40)[0]
    assert found == [15, 16, 17, 18, 19, 36, 37, 38, 39]


def test_snapkv_window_columns_do_not_smooth_into_their_neighbours() -> None:
    """specs/prulong.md 2.2: the window's columns are removed before pooling."""
    scores = torch.full((1, 1, 20), 0.01)
    scores[0, 0, 16:] = 100.0
    scores[0, 0, 3] = 0.5
    found = kept(method("snapkv", {"window": 4}).keep(seen(scores, 5)), 20)[0]
    assert found[0] in range(1, 6)
    assert found[1:] == [16, 17, 18, 19]


def test_snapkv_padding_counts_in_the_mean() -> None:
    """Edges are biased as in the released code: zeros beyond the ends belong to the mean."""
    assert pool(torch.ones(1, 1, 6), 5, "avg")[0, 0].tolist() == pytest.approx([0.6, 0.8, 1, 1, 0.8, 0.6])
    assert pool(torch.tensor([[[0.0, 3, 0, 0, 1]]]), 3, "max")[0, 0].tolist() == [3, 3, 3, 1, 1]
    assert pool(torch.tensor([[[0.0, 3, 0]]]), 1, "avg")[0, 0].tolist() == [0, 3, 0]


def test_snapkv_pools_before_joining_heads() -> None:
    """specs/prulong.md 2.3. With max, the order decides: the sum of two heads' neighbours is no head's own."""
    scores = torch.zeros(1, 2, 12)
    scores[0, 0, 1], scores[0, 1, 3] = 0.8, 0.8
    scores[0, 0, 7] = 1.0
    options = {"window": 1, "kernel": 3, "pool": "avg", "group": "max"}
    # Per head: position 2 has 0.8 / 3, positions 6 to 8 have 1 / 3. Pooled after a max it would have 1.6 / 3.
    assert kept(method("snapkv", options).keep(seen(scores, 4)), 12)[0] == [6, 7, 8, 11]


def test_snapkv_permuting_kv_heads_permutes_the_result() -> None:
    torch.manual_seed(0)
    scores, chosen = torch.rand(4, 3, 50), method("snapkv", {"window": 5})
    order = torch.tensor([2, 0, 3, 1])
    plain = kept(chosen.keep(seen(scores, 20)), 50)
    assert kept(chosen.keep(seen(scores[order], 20)), 50) == [plain[i] for i in order]


@pytest.mark.parametrize("name", ["snapkv", "random"])
def test_slot_order_does_not_matter(name: str) -> None:
    """Decode-time eviction leaves rows out of order: a method goes by positions."""
    torch.manual_seed(1)
    scores, order = torch.rand(1, 3, 30), torch.randperm(29)
    order = torch.cat([order, torch.tensor([29])])
    chosen = method(name, {"window": 3, "sink": 2})
    plain = set(kept(chosen.keep(seen(scores, 12)), 30)[0])
    moved = chosen.keep(seen(scores[..., order], 12, positions=order[None], start=29, new=1))
    assert {int(order[i]) for i in kept(moved, 30)[0]} == plain


def test_streaming_keeps_sinks_and_the_newest() -> None:
    assert kept(method("streaming").keep(seen(None, 7, 20)), 20) == [[0, 1, 2, 3, 17, 18, 19]]
    assert kept(method("streaming", {"sink": 0}).keep(seen(None, 3, 20)), 20) == [[17, 18, 19]]
    # Sinks are positions, not slots: in a row without position 0 they are gone for good.
    state = seen(None, 3, 5, positions=torch.tensor([[9, 2, 7, 8, 10]]), start=10, new=1)
    assert kept(method("streaming").keep(state), 5) == [[0, 1, 4]]


def h2o_masses(recent: float, group: str, mass: Tensor, keep: int) -> list[int]:
    chosen = method("h2o", {"recent": recent, "group": group})
    return kept(chosen.keep(seen(None, keep, len(mass), planes={"mass": mass[None, :, None]})), len(mass))[0]


def test_h2o_keeps_heavy_hitters_and_recent_ones_half_and_half() -> None:
    mass = torch.tensor([0.0, 9, 1, 8, 2, 7, 0.1, 0.2, 0.3, 0.4])
    assert h2o_masses(0.5, "mean", mass, 4) == [1, 3, 8, 9]
    assert h2o_masses(0.0, "mean", mass, 4) == [1, 3, 4, 5]
    assert h2o_masses(1.0, "mean", mass, 4) == [6, 7, 8, 9]


def test_h2o_masses_add_up_over_passes() -> None:
    """The sum over tokens of mass is the number of queries seen, as long as nothing was evicted (specs, H2O)."""
    chosen = method("h2o")
    torch.manual_seed(0)
    first = torch.rand(2, 3, 5)
    state = seen(first, 5, planes={"mass": torch.zeros(2, 5, 1)})
    mass = chosen.observe(state)["mass"]
    assert torch.allclose(mass[..., 0], first.mean(1))
    second = torch.rand(2, 3, 6)
    state = seen(second, 6, planes={"mass": torch.cat([mass, torch.zeros(2, 1, 1)], 1)})
    both = chosen.observe(state)["mass"][..., 0]
    assert torch.allclose(both[:, :5], first.mean(1) + second.mean(1)[:, :5])
    assert torch.allclose(both[:, 5], second.mean(1)[:, 5])


def test_h2o_takes_the_maximum_over_sums() -> None:
    """Head 0 gives position 0 much once, head 1 gives position 1 more in sum: max of sums keeps 1."""
    chosen = method("h2o", {"group": "max", "recent": 0.0})
    state = seen(torch.tensor([[[0.9, 0.1], [0.5, 0.5]]]), 2, planes={"mass": torch.zeros(1, 2, 2)})
    mass = chosen.observe(state)["mass"]
    state = seen(torch.tensor([[[0.0, 0.0], [0.1, 0.9]]]), 1, planes={"mass": mass})
    mass = chosen.observe(state)["mass"]
    assert torch.allclose(mass[0], torch.tensor([[0.9, 0.6], [0.1, 1.4]]))
    assert kept(chosen.keep(seen(None, 1, 2, planes={"mass": mass})), 2) == [[1]]


def test_random_is_uniform_and_the_same_everywhere() -> None:
    x = uniform(torch.arange(200_000))
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(x.mean().item() - 0.5) < 0.003
    counts = torch.histc(x, 20, 0, 1) / 10_000
    assert (counts - 1).abs().max() < 0.05
    # Neighbouring keys (positions, heads, layers) are unrelated.
    assert abs(torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1].item()) < 0.01
    chosen = method("random", {"window": 3})
    plain = kept(chosen.keep(seen(None, 20, 100)), 100)[0]
    assert plain == kept(chosen.keep(seen(None, 20, 100)), 100)[0]
    assert plain != kept(method("random", {"window": 3, "seed": 1}).keep(seen(None, 20, 100)), 100)[0]
    assert plain != kept(chosen.keep(seen(None, 20, 100, layer=1)), 100)[0]
    assert plain != kept(chosen.keep(seen(None, 20, 100, heads=torch.tensor([1]))), 100)[0]
    assert plain[-3:] == [97, 98, 99]


def test_join() -> None:
    scores = torch.tensor([[[1.0, 5.0], [3.0, 1.0]]])
    assert join(scores, "mean").tolist() == [[2, 3]]
    assert join(scores, "max").tolist() == [[3, 5]]
