"""Window and column scores against the definitions, in pages and in one tensor."""

import pytest
import torch
from paged import close, make

from kvfoot.attention import naive, naive_paged
from kvfoot.attention.triton.column_scores import column_scores
from kvfoot.attention.triton.common import Launch
from kvfoot.attention.triton.window_scores import window_lse, window_scores

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SMALL = Launch(entries=16, queries=16, warps=4, stages=2)
CASES = [
    # D, G, page, dtype, queries, lengths: a row may hold less than the window
    (64, 3, 16, FP32, 17, [15, 16, 17, 0, 50]),
    (80, 5, 32, FP16, 9, [31, 32, 33, 1]),
    (64, 7, 64, BF16, 5, [63, 65]),
    (128, 1, 16, FP32, 3, [47, 3]),
    (256, 2, 32, BF16, 4, [34, 4]),
]


@pytest.mark.parametrize(("D", "G", "page", "dtype", "n", "lens"), CASES)
def test_scores_of_ragged_rows(D: int, G: int, page: int, dtype: torch.dtype, n: int, lens: list[int]) -> None:
    x = make(lens, D, G, page, dtype, n)
    width = x.most + 5
    state = naive_paged.prefill(x.q, x.k, x.k, x.table, x.lens, x.scale, True)
    assert close(window_lse(x.q, x.k, x.table, x.lens, x.scale, width, how=SMALL), state.lse, FP32)
    given = (x.q, x.k, x.table, x.lens, state.lse, x.scale, width)
    found = column_scores(*given, how=SMALL)
    assert close(found, naive_paged.column_scores(*given), FP32)
    assert (found[torch.arange(width, device=found.device).expand_as(found) >= x.lens[:, None, None]] == 0).all()
    windows = window_scores(x.q, x.k, x.table, x.lens, x.scale, width)
    assert close(windows, naive_paged.window_scores(x.q, x.k, x.table, x.lens, x.scale, width), FP32)
    sums = x.lens.clamp(max=n)[:, None].expand(-1, G).float()  # one per query that sees anything
    assert torch.allclose(windows.sum(-1), sums, rtol=1e-4)


@pytest.mark.parametrize("how", [None, SMALL])
@pytest.mark.parametrize(("m", "n"), [(37, 37), (70, 7), (33, 1)])
def test_scores_of_one_tensor(m: int, n: int, how: Launch | None) -> None:
    x = make([m, m], 64, 3, 16, FP32, n)
    k, _ = x.dense(slice(None), m)
    lse = naive.attend(x.q, k, k, x.scale, True).lse
    found = column_scores(x.q, k, None, None, lse, x.scale, how=how)
    assert close(found, naive.column_scores(x.q, k, lse, x.scale), FP32)
    assert close(window_lse(x.q, k, None, None, x.scale, how=how), lse, FP32)
    assert close(window_scores(x.q, k, None, None, x.scale), naive.window_scores(x.q, k, x.scale), FP32)
