"""Rings of entries by kernels and by their definition, against plain queues."""

from collections import deque
from typing import Any

import pytest
import torch
from paged import DEVICE

from kvfoot.attention import rings as plain
from kvfoot.attention.triton import rings as kernels


@pytest.mark.parametrize("how", [plain, kernels], ids=["plain", "kernels"])
def test_rings_are_queues(how: Any) -> None:
    """Rows of two widths, one without a ring, one that is idle; refilled where they fire alone, turned over twice."""
    L, R, size = 2, 5, 16
    generator = torch.Generator().manual_seed(0)
    table = torch.randperm(R * 20, generator=generator).int().view(R, 20)
    width = torch.tensor([6, 6, 4, 4, 0], dtype=torch.int32)
    rings = plain.Rings.empty(L, R, 6, torch.device(DEVICE))
    rings.width.copy_(width.expand(L, R))
    queues: dict[tuple[int, int], deque[int]] = {}
    lens = torch.tensor([[90, 95, 60, 0, 50], [80, 85, 70, 0, 40]])

    def refill(layer: int, rows: list[int], fired: list[int]) -> None:
        own = torch.tensor(rows)
        K = int(width[rows[0]]) - 1
        chosen = torch.stack([torch.randperm(40, generator=generator)[:K] for _ in rows])
        mask = torch.zeros(R, dtype=torch.bool)
        mask[fired] = True
        given = [x.to(DEVICE) for x in (own, chosen, mask, table)]
        how.refill(rings, layer, *given, size)
        for r, entries in zip(rows, chosen.tolist(), strict=True):
            if r in fired:
                queues[layer, r] = deque(entries)

    def push() -> None:
        nonlocal lens
        lens = lens + (lens > 0)
        newest = lens - 1
        slots = torch.stack([table.long().gather(1, newest[i, :, None].clamp(min=0) // size)[:, 0] for i in range(L)])
        how.push(rings, lens.to(DEVICE), (slots * size + newest % size).to(DEVICE))
        for (layer, r), queue in queues.items():
            if lens[layer, r]:
                queue.append(int(newest[layer, r]))
                while len(queue) > width[r]:
                    queue.popleft()

    def check() -> None:
        for (layer, r), queue in queues.items():
            if lens[layer, r]:
                K = int(width[r]) - 1
                found = rings.queue(layer, torch.tensor([r], device=DEVICE), K)[0].tolist()
                assert found == list(queue)[-K:]
                entry, slot = (x[layer, r, : len(queue)].cpu() for x in (rings.entry, rings.slot))
                assert torch.equal(slot, table[r, entry.long() // size] * size + entry % size)

    for layer in range(L):
        refill(layer, [0, 1], [0, 1])
        refill(layer, [2, 3], [2, 3])
    check()
    for step in range(13):
        push()
        check()
        if step in (4, 5):
            refill(1, [0, 1], [1])
            refill(0, [2], [2])
            check()
