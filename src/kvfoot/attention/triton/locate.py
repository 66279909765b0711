"""A `Read` list's entries as slots of the arena: then reading some entries is reading pages of one entry.

The decode kernel so has one indirection whatever it reads; two would keep its pipeline from filling.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common


@triton.jit
def locate_kernel(
    table, read, count, slots, table_pitch, read_pitch, slots_pitch, PAGE: tl.constexpr, BN: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BN + tl.arange(0, BN)
    ok = i < tl.load(count + row).to(tl.int32)
    j = tl.load(read + row * read_pitch + i, mask=ok, other=0).to(tl.int32)
    page = tl.load(table + row * table_pitch + j // PAGE, mask=ok, other=0).to(tl.int32)
    tl.store(slots + row * slots_pitch + i, page * PAGE + j % PAGE, mask=ok)


def locate(table_RP: Tensor, read_RK: Tensor, count_R: Tensor, page_size: int) -> Tensor:
    """Slots int32 [R, K] of entries read_RK[r, : count_R[r]]; what lies beyond is undefined (naive_paged.locate)."""
    R, most = read_RK.shape
    slots = common.scratch((R, most), torch.int32, read_RK.device)
    block = 256
    locate_kernel[(R, triton.cdiv(most, block))](
        table_RP,
        read_RK,
        count_R,
        slots,
        table_RP.stride(0),
        read_RK.stride(0),
        slots.stride(0),
        PAGE=page_size,
        BN=block,
        num_warps=4,
    )
    return slots
