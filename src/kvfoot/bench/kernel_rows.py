"""Llama-3.1-8B's attention as rows of a cache: what `kvfoot bench kernels` times."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.triton.append import append
from kvfoot.attention.triton.common import Launch
from kvfoot.attention.triton.decode import decode, decode_emitting, planned
from kvfoot.bench.measure import floor_ms, milliseconds

LAYERS, HEADS, GROUP, DIM, PAGE = 32, 8, 4, 128, 16
ENTRY = 2 * DIM * 2
BF16 = torch.bfloat16
CUDA = torch.device("cuda")
ENTRIES = 97_000_000
"""Entries of the arena: 12 % of 128K, 24 sequences."""


def captured(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


class Arena:
    """Keys and values for every shape in turn: rows of random numbers in neighbouring pages."""

    def __init__(self) -> None:
        self.k, self.v = (torch.empty(ENTRIES // PAGE, PAGE, DIM, dtype=BF16, device="cuda") for _ in range(2))
        self.k.normal_()
        self.v.normal_()
        torch.manual_seed(0)

    def rows(self, kind: str, length: int, batch: int, page: int = PAGE, shuffled: bool = False) -> "Step":
        """Lengths [layers, rows] and their tables; one more entry than `length` says has room."""
        per_layer = HEADS * batch
        if kind == "full":
            lens = torch.full((LAYERS, per_layer), length)
        elif kind == "12 %":
            lens = torch.full((LAYERS, per_layer), round(0.12 * length))
        else:
            heads = LAYERS * HEADS
            full = torch.randperm(heads, generator=torch.Generator().manual_seed(0))[: round(0.3 * heads)]
            one = torch.full((heads,), 128 + 1024).index_fill(0, full, length)
            lens = one.view(LAYERS, 1, HEADS).expand(LAYERS, batch, HEADS).reshape(LAYERS, per_layer)
        pages = -(-(lens + 1) // page)
        total = int(pages.sum())
        assert total * page <= ENTRIES, (kind, length, batch)
        starts = (pages.flatten().cumsum(0) - pages.flatten()).view_as(pages)
        width = int(pages.max())
        table = (starts[..., None] + torch.arange(width)).clamp(max=total - 1)
        if shuffled:
            table = torch.randperm(total)[table]
        k, v = (x.view(-1)[: ENTRIES // page * page * DIM].view(-1, page, DIM) for x in (self.k, self.v))
        return Step(k, v, table.int().cuda(), lens.int().cuda(), int(lens.sum()) + lens.numel())


class Step:
    """All layers' attention of one decode step."""

    def __init__(self, k: Tensor, v: Tensor, table_LRP: Tensor, lens_LR: Tensor, entries: int):
        self.k, self.v, self.table, self.start, self.entries = k, v, table_LRP, lens_LR, entries
        self.lens = lens_LR + 1
        layers, rows = lens_LR.shape
        self.q = torch.randn(layers, rows, GROUP, DIM, device=k.device).to(BF16)
        self.new = torch.randn(2, rows, 1, DIM, device=k.device).to(BF16)

    def run(self, how: Launch | None = None, writing: bool = True, emit: int = 0) -> None:
        plan = planned(self.lens, DIM, BF16, how)
        for i in range(LAYERS):
            if writing:
                append((self.k, self.v), self.table[i], self.start[i], (self.new[0], self.new[1]))
            given = (self.q[i], self.k, self.v, self.table[i], self.lens[i], DIM**-0.5)
            if emit:
                decode_emitting(*given, emit, plan=plan.layer(i), how=how)
            else:
                decode(*given, plan=plan.layer(i), how=how)

    def time(self, bandwidth: float, **options: Any) -> dict[str, float]:
        graph = captured(lambda: self.run(**options))
        ms = milliseconds(graph.replay, CUDA)
        floor = floor_ms(self.entries * ENTRY, bandwidth)
        return {"ms": ms, "gb": self.entries * ENTRY / 1e9, "of_copy": floor / ms}
