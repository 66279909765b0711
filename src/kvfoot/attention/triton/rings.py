"""Rings of entries (attention/rings.py): all layers' newest entries in one launch, a layer's new choice in another."""

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.rings import Rings


@triton.jit
def push_kernel(entry, slot, at, width, lens, slots, rows, pitch, BN: tl.constexpr):
    i = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = i < rows
    n = tl.load(lens + i, mask=inside, other=0).to(tl.int32)
    w = tl.load(width + i, mask=inside, other=0)
    live = inside & (n > 0) & (w > 0)
    place = tl.load(at + i, mask=live, other=0)
    to = i.to(tl.int64) * pitch + place
    tl.store(entry + to, n - 1, mask=live)
    tl.store(slot + to, tl.load(slots + i, mask=live, other=0).to(tl.int32), mask=live)
    tl.store(at + i, tl.where(place + 1 == w, 0, place + 1), mask=live)


@triton.jit
def refill_kernel(
    entry, slot, at, own, chosen, fired, table, count, pitch, table_pitch, PAGE: tl.constexpr, BN: tl.constexpr
):
    e = tl.program_id(0).to(tl.int64)
    row = tl.load(own + e)
    if tl.load(fired + row) != 0:
        i = tl.program_id(1) * BN + tl.arange(0, BN)
        inside = i < count
        j = tl.load(chosen + e * count + i, mask=inside, other=0).to(tl.int32)
        page = tl.load(table + row * table_pitch + j // PAGE, mask=inside, other=0)
        tl.store(entry + row * pitch + i, j, mask=inside)
        tl.store(slot + row * pitch + i, page * PAGE + j % PAGE, mask=inside)
        if tl.program_id(1) == 0:
            tl.store(at + row, count)


def push(rings: Rings, lens_LR: Tensor, slots_LR: Tensor) -> None:
    """See rings.push."""
    rows, block = rings.at.numel(), 128
    lens, slots = lens_LR.contiguous(), slots_LR.contiguous()
    push_kernel[(triton.cdiv(rows, block),)](
        rings.entry, rings.slot, rings.at, rings.width, lens, slots, rows, rings.entry.stride(1), BN=block, num_warps=4
    )


def refill(
    rings: Rings, layer: int, rows_E: Tensor, chosen_EK: Tensor, fired_R: Tensor, table_RP: Tensor, page_size: int
) -> None:
    """See rings.refill."""
    (E, K), block = chosen_EK.shape, 512
    refill_kernel[(E, triton.cdiv(K, block))](
        rings.entry[layer],
        rings.slot[layer],
        rings.at[layer],
        rows_E,
        chosen_EK.contiguous(),
        fired_R,
        table_RP,
        K,
        rings.entry.stride(1),
        table_RP.stride(0),
        PAGE=page_size,
        BN=block,
        num_warps=4,
    )
