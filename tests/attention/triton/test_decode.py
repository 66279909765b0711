"""Decode over ragged rows, its plan, its parts, its scores and its lists, against the definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import DEVICE, close, make

from kvfoot.attention import naive_paged
from kvfoot.attention.state import State
from kvfoot.attention.state import merge as join
from kvfoot.attention.triton.common import Launch
from kvfoot.attention.triton.decode import decode, decode_emitting, planned
from kvfoot.attention.triton.locate import locate
from kvfoot.attention.triton.merge import merge
from kvfoot.attention.triton.plan import plan
from kvfoot.core.errors import UsageError

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES = [
    # D, G, page, dtype, lengths
    (64, 1, 16, FP32, [1, 15, 16, 17, 0, 130]),
    (64, 7, 16, BF16, [33, 1, 0, 0, 70]),
    (80, 5, 32, FP16, [0, 31, 32, 33, 1]),
    (96, 16, 64, FP32, [63, 65, 0]),
    (128, 4, 16, BF16, [100, 1, 49]),
    (256, 2, 32, FP32, [35, 0, 1]),
]


@pytest.mark.parametrize(
    ("D", "G", "page", "dtype", "lens", "index"),
    [(*case, torch.int32) for case in CASES] + [(*case, torch.int64) for case in CASES[:2]],
)
def test_decode(D: int, G: int, page: int, dtype: torch.dtype, lens: list[int], index: torch.dtype) -> None:
    x = make(lens, D, G, page, dtype, index=index)
    found = decode(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale)
    expected = naive_paged.decode(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale)
    assert (found.out.dtype, found.lse.dtype) == (dtype, torch.float32)
    assert close(found.out, expected.out, dtype)
    assert close(found.lse, expected.lse, FP32)
    empty = x.lens == 0
    assert (found.out[empty] == 0).all()
    assert (found.lse[empty] == -torch.inf).all()


@pytest.mark.parametrize(("D", "G", "page", "dtype", "lens"), [*CASES[:3], (64, 2, 64, FP32, [1030, 0, 3])])
def test_emitted_weights(D: int, G: int, page: int, dtype: torch.dtype, lens: list[int]) -> None:
    x = make(lens, D, G, page, dtype)
    width = x.most + 3
    state, found = decode_emitting(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale, width)
    quiet = decode(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale)
    assert torch.equal(state.out, quiet.out), "scores change the output"
    assert close(found, naive_paged.weights(x.q[:, :, 0], x.k, x.table, x.lens, x.scale, width), FP32)
    again, raw = decode_emitting(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale, width, logits=True)
    assert torch.equal(again.out, quiet.out)
    there = (torch.arange(width, device=DEVICE) < x.lens[:, None])[:, None].expand_as(raw)
    assert close((raw * math.log(2) - again.lse[..., None]).exp()[there], found[there], FP32)
    assert torch.allclose(found.sum(-1), (x.lens > 0).float()[:, None].expand(-1, G), atol=1e-5)


@pytest.mark.parametrize(("page", "dtype"), [(16, FP32), (32, BF16)])
def test_read_list(page: int, dtype: torch.dtype) -> None:
    """Any entries in any order, a row that reads none, a row that reads all."""
    x = make([90, 17, 40, 5], 64, 4, page, dtype)
    generator = torch.Generator().manual_seed(page)
    counts = torch.tensor([33, 0, 40, 1])
    read = torch.full((4, 50), 10**6, dtype=torch.int32)
    for r, n in enumerate(counts.tolist()):
        read[r, :n] = torch.randperm(int(x.lens[r]), generator=generator)[:n]
    read, counts = read.to(DEVICE), counts.to(DEVICE)
    given = (x.q[:, :, 0], x.k, x.v, x.table, counts, x.scale)
    expected = naive_paged.decode(*given, read_RK=read)
    found, weights = decode_emitting(*given, 50, read_RK=read)
    assert close(found.out, expected.out, dtype)
    assert close(found.lse, expected.lse, FP32)
    assert close(weights, naive_paged.weights(given[0], x.k, x.table, counts, x.scale, 50, read), FP32)
    inside = torch.arange(50, device=DEVICE) < counts[:, None]
    slots = locate(x.table, read, counts, page)
    assert torch.equal(slots[inside].long(), naive_paged.locate(x.table, read, counts, page)[inside])
    # Slots are found once for many steps: a table of pages of one entry.
    flat = [p.view(-1, 1, 64) for p in (x.k, x.v)]
    again = decode(given[0], *flat, slots.where(inside, 0), counts, x.scale)
    assert torch.equal(again.out, found.out)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=5).filter(any),
    st.integers(1, 9),
    st.sampled_from([16, 32]),
    st.sampled_from([16, 32, 64]),
)
def test_any_lengths_shared_out_to_any_number_of_programs(
    lens: list[int], programs: int, page: int, entries: int
) -> None:
    x = make(lens, 64, 3, page, FP32)
    how = Launch(entries=entries, warps=4, stages=2)
    made = plan(x.lens[None], entries, programs)
    found = decode(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale, plan=made, how=how)
    expected = naive_paged.decode(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale)
    assert close(found.out, expected.out, FP32)
    assert close(found.lse, expected.lse, FP32)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda layers: st.lists(
            st.lists(st.integers(0, 300), min_size=layers, max_size=layers), min_size=1, max_size=40
        )
    ),
    st.integers(1, 70),
    st.sampled_from([16, 64]),
)
def test_plan(columns: list[list[int]], programs: int, tile: int) -> None:
    lens = torch.tensor(columns).T.to(DEVICE)
    made = plan(lens, tile, programs)
    tiles, first = naive_paged.plan(lens, tile, programs)
    assert torch.equal(made.tiles, tiles)
    assert torch.equal(made.first, first)


def test_plan_of_more_rows_than_a_block() -> None:
    lens = torch.randint(0, 90, (2, 301), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    lens[1, 40:280] = 0
    made = plan(lens, 16, 130)
    tiles, first = naive_paged.plan(lens, 16, 130)
    assert torch.equal(made.tiles, tiles)
    assert torch.equal(made.first, first)


def test_layers_of_one_plan() -> None:
    """A step plans all layers at once and decodes them one by one."""
    x = make([70, 3, 0, 33], 64, 2, 16, FP32)
    lens = torch.stack([x.lens, x.lens.flip(0).minimum(x.lens), x.lens // 2])
    made = planned(lens, 64, FP32)
    for layer in range(3):
        found = decode(x.q[:, :, 0], x.k, x.v, x.table, lens[layer], x.scale, plan=made.layer(layer))
        assert close(found.out, naive_paged.decode(x.q[:, :, 0], x.k, x.v, x.table, lens[layer], x.scale).out, FP32)


def test_merge_is_the_merge_of_states() -> None:
    """Normalisers far apart, one part, many parts, none; parts of other rows and unused slots are NaN."""
    lens = torch.tensor([[200, 16, 0, 500, 1]])
    made = plan(lens.to(DEVICE), 16, 70)
    part = torch.full((75, 3, 80), torch.nan)
    lse = torch.full((75, 3), torch.nan)
    generator = torch.Generator().manual_seed(3)
    share = -(-int(made.tiles[0, -1]) // 70)
    states = []
    for r in range(5):
        a, b = int(made.tiles[0, r]), int(made.tiles[0, r + 1])
        state = State(torch.zeros(3, 80), torch.full((3,), -torch.inf))
        for p in range(a // share, -(-b // share) if b > a else 0):
            part[p + r] = torch.randn(3, 80, generator=generator)
            lse[p + r] = 40 * torch.randn(3, generator=generator)
            state = join(state, State(part[p + r], lse[p + r] * torch.log(torch.tensor(2.0))))
        states.append(state)
    found = merge(part.to(DEVICE), lse.to(DEVICE), made, FP32)
    assert close(found.out.cpu(), torch.stack([s.out for s in states]), FP32)
    assert torch.allclose(found.lse.cpu(), torch.stack([s.lse for s in states]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_size": 72}, "head sizes 64, 80, 96, 128, 256, not 72"),
        ({"group": 17}, "1 to 16 query heads per KV head, not 17"),
        ({"page": 24}, "pages of 1, 16, 32, 64 entries, not 24"),
        ({"dtype": torch.float64}, "bfloat16, float16, float32, not torch.float64"),
    ],
)
def test_what_it_cannot_serve_is_refused(change: dict[str, object], message: str) -> None:
    x = make([5], **{"head_size": 64, "group": 2, "page": 16, "dtype": FP32} | change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"the triton backend serves {message}: use the sdpa backend"):
        decode(x.q[:, :, 0], x.k, x.v, x.table, x.lens, x.scale)


def test_pages_that_are_no_arena_and_other_dtypes_are_refused() -> None:
    x = make([5], 64, 2, 16, FP32)
    with pytest.raises(UsageError, match="pages must be contiguous"):
        decode(x.q[:, :, 0], x.k.mT.contiguous().mT, x.v, x.table, x.lens, x.scale)
    with pytest.raises(UsageError, match=r"queries in the cache's dtype torch.float32, not torch.float16"):
        decode(x.q[:, :, 0].half(), x.k, x.v, x.table, x.lens, x.scale)
