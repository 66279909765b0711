"""Scratch and outputs start as NaN: what a kernel reads unwritten, or leaves unwritten, is seen."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def poisoned_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvfoot.attention.triton import common

    def scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        room = torch.empty(shape, dtype=dtype, device=device)
        return room.fill_(torch.nan if dtype.is_floating_point else -(1 << 30))

    monkeypatch.setattr(common, "scratch", scratch)
