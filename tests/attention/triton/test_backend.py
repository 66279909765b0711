"""The Backend protocol's operations by kernels, and what is refused."""

import sys

import numpy as np
import pytest
import torch
from paged import close, make

from kvfoot.attention import naive
from kvfoot.attention.state import Ragged
from kvfoot.attention.triton import load
from kvfoot.core.errors import UsageError

FP32 = torch.float32


@pytest.mark.parametrize(("n", "m"), [(1, 37), (7, 7), (9, 50)])
def test_operations(n: int, m: int) -> None:
    backend = load()
    assert backend.name == "triton"
    x = make([m, m], 64, 5, 16, FP32, n)
    k, v = x.dense(slice(None), m)
    for causal in (True, False):
        found, expected = (b.attend(x.q, k, v, x.scale, causal) for b in (backend, naive))
        assert close(found.out, expected.out, FP32)
        assert close(found.lse, expected.lse, FP32)
    lse = naive.attend(x.q, k, v, x.scale, True).lse
    assert close(backend.column_scores(x.q, k, lse, x.scale), naive.column_scores(x.q, k, lse, x.scale), FP32)
    assert close(backend.window_scores(x.q, k, x.scale), naive.window_scores(x.q, k, x.scale), FP32)
    given = (x.q[:, :, 0], x.k, x.v)
    ragged = Ragged(x.table, np.array([m, m // 2 + 1]))
    slots = x.table[:, :1].long() * 16 + torch.arange(min(m, 3), device=x.k.device)
    for found, expected in (
        (backend.decode(*given, ragged, x.scale), naive.decode(*given, ragged, x.scale)),
        (backend.gathered(*given, slots, x.scale), naive.gathered(*given, slots, x.scale)),
    ):
        assert close(found.out, expected.out, FP32)
        assert close(found.lse, expected.lse, FP32)


def test_masks_of_any_form_are_served_by_torch() -> None:
    x = make([8], 64, 3, 16, FP32, 8)
    k, v = x.dense(slice(None), 8)
    band = torch.ones(1, 8, 8, dtype=torch.bool, device=k.device).tril().triu(-2)
    found, expected = (backend.attend(x.q, k, v, x.scale, True, visible=band) for backend in (load(), naive))
    assert close(found.out, expected.out, FP32)
    assert close(found.lse, expected.lse, FP32)


def test_a_device_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvfoot.attention.triton import common

    monkeypatch.setattr(common, "INTERPRET", False)
    x = torch.zeros(1, 1, 4, 64)
    with pytest.raises(UsageError, match="the triton backend runs on cuda, not on cpu"):
        load().attend(x, x[:, 0], x[:, 0], 1.0, True)


def test_without_triton_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UsageError, match=r"needs the triton package: pip install 'kvfoot\[triton\]'"):
        load()
