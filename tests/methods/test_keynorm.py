"""Lowest key norm kept (arXiv 2406.11430), without what the released cache gets wrong (specs/prulong.md 7, 20)."""

import numpy as np
import pytest
import torch

import tiny
from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Seen
from kvfoot.core.registry import method


def kept(positions: list[int], norms: list[float], keep: int, **options: int) -> list[int]:
    """Positions that survive, slots in any order."""
    p = torch.tensor([positions])
    direction = torch.nn.functional.normalize(torch.randn(len(norms), 8), dim=-1)
    keys = (direction * torch.tensor(norms)[:, None])[None].bfloat16()
    state = Seen(3, torch.tensor([0]), p, max(positions), 1, keep, keys=keys)
    found = method("keynorm", options).keep(state).kept
    assert found is not None
    return sorted(p[0][found[0]].tolist())


def test_the_lowest_norms_are_kept() -> None:
    torch.manual_seed(0)
    assert kept([0, 1, 2, 3, 4, 5], [5.0, 1.0, 4.0, 2.0, 3.0, 9.0], 3) == [1, 3, 4]
    assert kept([0, 1, 2, 3, 4, 5], [5.0, 1.0, 4.0, 2.0, 3.0, 9.0], 3, window=1) == [1, 3, 5]
    assert kept([0, 1, 2, 3, 4, 5], [5.0, 1.0, 4.0, 2.0, 3.0, 9.0], 3, window=1, sink=1) == [0, 1, 5]


def test_the_window_is_made_of_positions_whatever_the_slots() -> None:
    """Trap 20: the released cache stores [local, pruned], so its next "last 64" are mostly pruned entries."""
    assert kept([7, 8, 2, 0, 5, 9], [9.0, 8.0, 1.0, 2.0, 3.0, 7.0], 4, window=3) == [2, 7, 8, 9]


def test_the_first_layers_keep_everything() -> None:
    run = tiny.run(tiny.Strict(tiny.qwen2()), tiny.tokens(40), "keynorm", keep=0.25, new=3)
    assert run.sequence.held is not None
    assert run.sequence.held.tolist() == [[40] * 3, [40] * 3, [10] * 3]
    held = tiny.run(tiny.Strict(tiny.qwen2()), tiny.tokens(40), "keynorm", budget=16, chunk=8, evict="chunk", new=3)
    assert held.sequence.rows.lens.tolist() == [[42] * 3, [42] * 3, [16] * 3]


@pytest.mark.parametrize("layers", [1, 2])
def test_skipping_every_layer_is_refused(layers: int) -> None:
    """Never a silently uncompressed run (decision D10)."""
    geometry = Geometry(layers=layers, kv_heads=2, group=1, head_dim=8, positions=512)
    with pytest.raises(UsageError, match=f"keynorm: skip=2 leaves none of the model's {layers} layers"):
        method("keynorm").prepare(geometry, 100, None, Budget.of(0.5))


def test_read_charges_the_keys_in_scope_once() -> None:
    engine = tiny.Strict(tiny.llama())
    chunks = tiny.run(engine, tiny.tokens(64), "keynorm", {"skip": 1}, keep=0.5, evict="chunk", chunk=16, new=2)
    scans = [p.scan for p in chunks.sequence.trace.passes]
    assert [None if s is None else s.tolist() for s in scans[:4]] == [[[0, 0], [16, 16]]] * 4
    assert all(s is None for s in scans[4:])
    trace = chunks.sequence.trace
    assert trace.read() == trace.kv() + 4 * 2 * 16 / 2
    held = tiny.run(engine, tiny.tokens(64), "keynorm", {"skip": 0}, budget=20, new=3)
    assert [int(np.unique(p.scan)[0]) for p in held.sequence.trace.passes] == [64, 21, 21]  # type: ignore[arg-type]
