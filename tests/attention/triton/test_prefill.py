"""Chunks of queries against ragged rows: causal, history alone, sinks and window; in pages and in one tensor."""

import pytest
import torch
from paged import close, make

from kvfoot.attention import naive, naive_paged
from kvfoot.attention.state import merge
from kvfoot.attention.triton.chunk_prefill import chunk_prefill
from kvfoot.attention.triton.common import Launch
from kvfoot.attention.triton.stream_prefill import stream_prefill
from kvfoot.core.errors import UsageError

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SMALL = Launch(entries=16, queries=16, warps=4, stages=2)
"""Tiles small enough that short rows have whole ones, partial ones and unseen ones."""
CASES = [
    # D, G, page, dtype, queries, lengths: a row may hold less than the chunk
    (64, 3, 16, FP32, 17, [40, 15, 16, 17, 0, 90]),
    (64, 7, 64, BF16, 5, [63, 64, 65, 1]),
    (80, 5, 32, FP16, 9, [31, 32, 33, 70]),
    (96, 1, 16, FP32, 33, [33, 50, 0]),
    (128, 4, 16, BF16, 6, [47, 6]),
    (256, 2, 32, FP32, 3, [34, 3]),
]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("D", "G", "page", "dtype", "n", "lens"), CASES)
def test_chunk_against_ragged_rows(
    D: int, G: int, page: int, dtype: torch.dtype, n: int, lens: list[int], causal: bool
) -> None:
    x = make(lens, D, G, page, dtype, n)
    found = chunk_prefill(x.q, x.k, x.v, x.table, x.lens, x.scale, causal, how=SMALL)
    expected = naive_paged.prefill(x.q, x.k, x.v, x.table, x.lens, x.scale, causal)
    assert (found.out.dtype, found.lse.dtype) == (dtype, torch.float32)
    assert close(found.out, expected.out, dtype)
    assert close(found.lse, expected.lse, FP32)


@pytest.mark.parametrize(("sink", "window"), [(0, 1), (4, 16), (5, 33), (16, 1000), (40, 7)])
@pytest.mark.parametrize(("D", "G", "page", "dtype", "n", "lens"), CASES[:2])
def test_sinks_and_window(
    D: int, G: int, page: int, dtype: torch.dtype, n: int, lens: list[int], sink: int, window: int
) -> None:
    x = make(lens, D, G, page, dtype, n)
    found = stream_prefill(x.q, x.k, x.v, x.table, x.lens, x.scale, sink, window, how=SMALL)
    expected = naive_paged.prefill(x.q, x.k, x.v, x.table, x.lens, x.scale, True, sink, window)
    assert close(found.out, expected.out, dtype)
    assert close(found.lse, expected.lse, FP32)


def test_an_unseen_tile_is_not_read() -> None:
    """Entries between the sinks and every window are NaN: the result is that of rows without them."""
    x = make([160], 64, 2, 16, FP32, 8)
    expected = naive_paged.prefill(x.q, x.k, x.v, x.table, x.lens, x.scale, True, 4, 24)
    for page in range(1, 7):  # entries [16, 112); the oldest that is seen is 160 - 8 - 23 = 129, its tile starts at 128
        x.k[x.table[0, page]] = x.v[x.table[0, page]] = torch.nan
    found = stream_prefill(x.q, x.k, x.v, x.table, x.lens, x.scale, 4, 24, how=SMALL)
    assert close(found.out, expected.out, FP32)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("how", [None, SMALL])
def test_one_tensor_with_strides(causal: bool, how: Launch | None) -> None:
    x = make([51, 51], 64, 3, 16, FP32, 19)
    k, v = x.dense(slice(None), 51)
    q = x.q.transpose(1, 2).contiguous().transpose(1, 2)
    found = chunk_prefill(q, k, v, None, None, x.scale, causal, how=how)
    expected = naive.attend(q, k, v, x.scale, causal)
    assert close(found.out, expected.out, FP32)
    assert close(found.lse, expected.lse, FP32)
    stream = stream_prefill(q, k, v, None, None, x.scale, 3, 20, how=how)
    paged = naive_paged.prefill(q, x.k, x.v, x.table, x.lens, x.scale, True, 3, 20)
    assert close(stream.out, paged.out, FP32)


def test_history_and_chunk_join() -> None:
    """The history without a mask, merged with the chunk's own square, is the chunk after it was appended."""
    n = 11
    x = make([51, 30], 64, 2, 16, FP32, n)
    whole = chunk_prefill(x.q, x.k, x.v, x.table, x.lens, x.scale, True)
    old = chunk_prefill(x.q, x.k, x.v, x.table, x.lens - n, x.scale, False)
    for r in range(2):
        k, v = x.dense(slice(r, r + 1), int(x.lens[r]))
        own = chunk_prefill(x.q[r : r + 1], k[:, -n:], v[:, -n:], None, None, x.scale, True)
        both = merge(type(old)(old.out[r : r + 1], old.lse[r : r + 1]), own)
        assert close(both.out, whole.out[r : r + 1], FP32)
        assert close(both.lse, whole.lse[r : r + 1], FP32)


def test_windows_that_see_nothing_are_refused() -> None:
    x = make([20], 64, 1, 16, FP32, 4)
    with pytest.raises(UsageError, match="sink=4, window=0: give sink >= 0 and window >= 1"):
        stream_prefill(x.q, x.k, x.v, x.table, x.lens, x.scale, 4, 0)
