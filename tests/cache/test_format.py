"""Keys and values in 8 or 4 bits: the error is bounded, the bytes are there, and nothing is coded twice."""

import numpy as np
import pytest
import torch

import tiny
from kvfoot.cache.format import Grouped
from kvfoot.cache.kv import KVCache
from kvfoot.cache.pool import Pool
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import POSITION
from kvfoot.core.storage import Storage


def loops(x: list[float], bits: int) -> list[float]:
    """A group by its definition, in Python's floats and fp16 where it is stored."""
    low = float(np.float16(min(x)))
    step = float(np.float16(np.float32((max(x) - low) / (2**bits - 1))))
    codes = [min(max(round((v - low) / step), 0), 2**bits - 1) if step else 0 for v in x]
    return [low + c * step for c in codes]


@pytest.mark.parametrize("head_dim", [8, 64, 80, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_number_is_at_most_half_a_step_off(bits: int, head_dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, head_dim) * torch.logspace(-3, 3, head_dim)  # channels of very different size
    x[0, 0], x[0, 1] = 3.14159, 0.0  # groups without a width
    coded = Grouped(bits, head_dim, torch.float32)
    stored = coded.encode(x)
    assert stored.dtype == torch.uint8
    assert stored.shape == (5, 7, coded.width)
    assert coded.width == head_dim * bits // 8 + 4 * head_dim // coded.group
    groups = x.unflatten(-1, (-1, coded.group))
    width, low = groups.amax(-1) - groups.amin(-1), groups.amin(-1).abs()
    limit = width / (2**bits - 1) / 2 * (1 + 2**-10) + low * 2**-11 + width * 2**-11
    error = (coded.decode(stored) - x).abs().unflatten(-1, (-1, coded.group))
    assert (error <= limit[..., None] + 1e-7).all()
    assert (error.amax(-1)[1:] > limit[1:] / 4).any(), "the bound says something"
    for row in (x[1, 2], x[0, 0]):
        found = coded.decode(coded.encode(row)).unflatten(0, (-1, coded.group))
        for ours, group in zip(found, row.unflatten(0, (-1, coded.group)), strict=True):
            step = float(group.max() - group.min()) / (2**bits - 1)
            theirs = torch.tensor(loops(group.tolist(), bits))
            off = (ours - theirs).abs()  # a tie may be rounded either way
            assert ((off < 1e-4 * max(1.0, float(group.abs().max()))) | (off < step * 1.01)).all()
            assert (off < 1e-4 * max(1.0, float(group.abs().max()))).float().mean() > 0.95


def test_what_is_not_finite_stays_so() -> None:
    coded = Grouped(4, 64, torch.bfloat16)
    x = torch.zeros(2, 64)
    x[0, 40] = float("nan")
    found = coded.decode(coded.encode(x))
    assert found.dtype == torch.bfloat16
    assert found[0, :32].eq(0).all()
    assert found[0, 32:].isnan().all()
    assert found[1].eq(0).all()
    assert coded.decode(torch.full((coded.width,), 255, dtype=torch.uint8)).isnan().all(), "poison is poison"


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="store=3: 8 or 4 bits, or none"):
        Grouped(3, 64, torch.float32)
    with pytest.raises(UsageError, match="store=4: heads of 5 numbers do not fill whole bytes: use store=8"):
        Grouped(4, 5, torch.float32)


@pytest.mark.parametrize(("bits", "width"), [(None, 128), (8, 72), (4, 40)])
@pytest.mark.parametrize("place", ["device", "host"])
def test_the_arena_is_that_small(bits: int | None, width: int, place: str) -> None:
    """Heads of 64 in bf16: 128 bytes a key, 72 in 8 bits, 40 in 4; values on the host are not the device's bytes."""
    storage = Storage(bits, place)  # type: ignore[arg-type]
    pool = Pool(64, torch.bfloat16, page_size=16, planes=(POSITION,), pages=10, storage=storage)
    assert pool.k.nbytes == pool.v.nbytes == 10 * 16 * width
    away = width if place == "host" else 0
    assert (pool.entry_bytes, pool.host_entry_bytes) == (2 * width + 4 - away, away)
    pool.allocate(3)
    assert (pool.held_bytes, pool.host_held_bytes) == (48 * (2 * width + 4 - away), 48 * away)
    small = Pool(64, torch.bfloat16, page_size=16, memory=1 << 20, storage=storage)
    assert small.pages == (1 << 20) // (16 * (2 * width - away))


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_nothing_is_coded_twice(bits: int | None, place: str) -> None:
    """Appending, compacting, overwriting, forking, sliding move bytes; what stays is the same to the bit."""
    geometry = Geometry(2, 2, 1, 64, 100, windows=(None, 9))
    pool = Pool(
        64, torch.float32, page_size=4, planes=(POSITION,), pages=60, poison=True,
        storage=Storage(bits, place),  # type: ignore[arg-type]
    )  # fmt: skip
    pool.spoil()
    cache, heads = KVCache(pool, geometry), (0, 1)
    rows = cache.open()
    torch.manual_seed(1)
    k, v = torch.randn(2, 20, 64), torch.randn(2, 20, 64)
    at = torch.arange(20, dtype=torch.int32).expand(2, 20)[..., None]
    put = lambda a, b: cache.append(rows, 0, heads, k[:, a:b], v[:, a:b], {POSITION.name: at[:, a:b]})  # noqa: E731

    def codes(layer: int = 0) -> list[torch.Tensor]:
        return [cache._rows(name, rows, layer, heads).clone() for name in "kv"]

    coded = [pool.format.encode(x) for x in (k, v)]
    put(0, 7)
    put(7, 20)
    assert all(torch.equal(a, b) for a, b in zip(codes(), coded, strict=True))
    dense = [pool.format.decode(x) for x in coded]
    assert all(torch.equal(a, b) for a, b in zip(cache.history(rows, 0, heads), dense, strict=True))
    assert torch.equal(cache.keys(rows, 0, heads), dense[0])
    slots = torch.tensor([[3, 19, 0], [7, 7, 12]])
    pick = slots[..., None].expand(2, 3, 64)
    taken = cache.take(rows, 0, heads, slots)
    assert all(torch.equal(a, b.gather(1, pick)) for a, b in zip(taken, dense, strict=True))
    twin = cache.fork(rows)
    history = cache.history(rows, 0, heads)
    kept = torch.tensor([[0, 2, 3, 11, 19], [1, 5, 6, 7, 8]])
    cache.rebuild(rows, 0, heads, kept, *(x.clone() for x in history), {POSITION.name: at})
    mine = [x.gather(1, kept[..., None].expand(2, 5, x.shape[2])) for x in coded]
    assert all(torch.equal(a, b) for a, b in zip(codes(), mine, strict=True))
    lost = torch.tensor([1, 5])
    cache.overwrite(rows, 0, heads, lost, k[:, 9:10], v[:, 9:10], {POSITION.name: at[:, 9:10]})
    for x, c in zip(mine, coded, strict=True):
        x[0, 1] = c[0, 9]
    assert all(torch.equal(a, b) for a, b in zip(codes(), mine, strict=True))
    whole = [cache._rows(name, twin, 0, heads) for name in "kv"]
    assert all(torch.equal(a, b) for a, b in zip(whole, coded, strict=True)), "the fork's pages are its own"
    for first, last in ((0, 6), (6, 13), (13, 14), (14, 20)):
        empty = [x.new_empty(2, last - first, 64) for x in (k, v)]
        keys, values = cache.history(rows, 1, heads, room=last - first) if first else empty
        keys[:, -(last - first) :], values[:, -(last - first) :] = k[:, first:last], v[:, first:last]
        cache.slide(rows, 1, keys, values)
    ring = [x.roll(-rows.turn[1], 1) for x in codes(1)]
    assert all(torch.equal(a, b[:, 12:]) for a, b in zip(ring, coded, strict=True))
    cache.rewrite(twin, 0, heads, k[:, :3], v[:, :3])
    again = [cache._rows(name, twin, 0, heads) for name in "kv"]
    assert all(torch.equal(a[:, 17:], b[:, :3]) for a, b in zip(again, coded, strict=True))
    assert all(torch.equal(a[:, :17], b[:, :17]) for a, b in zip(again, coded, strict=True))
    cache.check()


def test_freed_pages_are_poisoned_in_few_bits() -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4)
    run = tiny.run(engine, tiny.tokens(40), "refreshkv", {"store": 4}, budget=8, new=4)
    pool = run.runner.cache.pool
    run.runner.cache.release(run.sequence.rows)
    assert pool.k.eq(255).all()
    assert pool.v.eq(255).all()
