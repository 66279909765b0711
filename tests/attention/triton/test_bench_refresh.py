"""The links of a refresh as `kvfoot bench kernels` times them, tiny and interpreted: all run, in order, one choice."""

import pytest
import torch
from paged import DEVICE

from kvfoot.attention.triton import topk
from kvfoot.bench.kernel_refresh import Layers, refresh
from kvfoot.bench.kernel_rows import BF16, DIM, GROUP, Step

LENGTH = 80


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "BLOCK", 128)
    monkeypatch.setattr(topk, "FINE", 128)


def tiny_step(rows: int, layers: int) -> Step:
    pages = -(-LENGTH // 16)
    k, v = (torch.randn(layers * rows * pages, 16, DIM, device=DEVICE).to(BF16) for _ in range(2))
    table = torch.arange(layers * rows * pages, dtype=torch.int32, device=DEVICE).view(layers, rows, pages)
    lens = torch.full((layers, rows), LENGTH - 1, dtype=torch.int32, device=DEVICE)
    return Step(k, v, table, lens, layers * rows * LENGTH)


def test_every_link_is_timed() -> None:
    found = list(refresh(tiny_step(2, 1), hidden=16 * GROUP, inner=16, repeat=1))
    assert [x["link"] for x in found if x["chain"] == "full"] == [
        "emitting", "keys", "narrow", "bracket", "place", "refill",
    ]  # fmt: skip
    assert [x["link"] for x in found if x["chain"] == "products"] == ["no choice", "choice in line", "choice aside"]
    assert len(found) == 2 + 6 + 7 + 3
    assert all(x["us"] > 0 for x in found)
    assert callable(topk.place_kernel.run), "kernels that a chain left out are back"


def test_what_the_links_leave_is_a_refresh() -> None:
    """K - 1 entries of each row, and the newest, in the rings of both layers."""
    layers = Layers(tiny_step(3, 2), 1)
    assert layers.count == LENGTH // 8
    for layer in range(2):
        held = layers.rings.entry[layer, :, : layers.count].cpu()
        assert (held[:, -1] == LENGTH - 1).all()
        assert all(row.unique().numel() == layers.count for row in held)
        assert (held >= 0).all()
        assert (held < LENGTH).all()
