"""New entries into their rows' pages (naive_paged.append): keys and values in one launch, other planes one by one.

Of passes that are launched: the model has rotated the keys. A recorded step has store.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common
from kvfoot.core.errors import UsageError


@triton.jit
def append_kernel(
    new_a,
    new_b,
    pages_a,
    pages_b,
    table,
    start,
    n,
    table_pitch,
    a_row,
    a_entry,
    b_row,
    b_entry,
    W: tl.constexpr,
    WP: tl.constexpr,
    PAGE: tl.constexpr,
    BN: tl.constexpr,
    PAIR: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BN + tl.arange(0, BN)
    at = tl.load(start + row).to(tl.int32)
    j = at + i
    ok = (i < n) & (j >= i)
    page = tl.load(table + row * table_pitch + j // PAGE, mask=ok, other=0).to(tl.int64)
    w = tl.arange(0, WP)
    inside = ok[:, None] & (w[None, :] < W)
    target = (page * PAGE + j % PAGE)[:, None] * W + w[None, :]
    i64 = i.to(tl.int64)
    a = tl.load(new_a + row * a_row + i64[:, None] * a_entry + w[None, :], mask=inside)
    tl.store(pages_a + target, a, mask=inside)
    if PAIR:
        b = tl.load(new_b + row * b_row + i64[:, None] * b_entry + w[None, :], mask=inside)
        tl.store(pages_b + target, b, mask=inside)


def append(pages: tuple[Tensor, ...], table_RP: Tensor, start_R: Tensor, new: tuple[Tensor, ...]) -> None:
    """Entry i of new[x] [R, n, W] becomes entry start_R + i of its row in pages[x]; a negative start writes nothing.

    One plane, or two of one width (keys and values) in a launch. start_R int32 or int64, on the device.
    """
    for plane, values in zip(pages, new, strict=True):
        if plane.dtype != values.dtype or plane.shape[2] != values.shape[2]:
            raise UsageError(
                f"entries of {values.dtype} [{values.shape[2]}] do not fit pages of {plane.dtype} [{plane.shape[2]}]"
            )
    common.pages(*pages)
    a, b = (words(common.unit(x)) for x in (new[0], new[-1]))
    R, n, width = a.shape
    block = min(common.padded(n, 1), 32)
    append_kernel[(R, triton.cdiv(n, block))](
        a,
        b,
        words(pages[0]),
        words(pages[-1]),
        table_RP,
        start_R,
        n,
        table_RP.stride(0),
        a.stride(0),
        a.stride(1),
        b.stride(0),
        b.stride(1),
        W=width,
        WP=common.padded(width, 1),
        PAGE=pages[0].shape[1],
        BN=block,
        PAIR=len(pages) == 2,
        num_warps=1 if block < 8 else 4,
    )


def words(x: Tensor) -> Tensor:
    """The same bits as integers: a copy does no arithmetic, and the interpreter rounds none."""
    return x.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
