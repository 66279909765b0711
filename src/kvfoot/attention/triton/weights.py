"""Emitted logits into softmax weights, once a row's normaliser is known (naive_paged.weights)."""

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common


@triton.jit
def weights_kernel(score, lse, lens, row_pitch, head_pitch, width, LOG2E: tl.constexpr, BN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    j = tl.program_id(2) * BN + tl.arange(0, BN)
    n = tl.load(lens + row).to(tl.int32)
    at = score + row * row_pitch + head.to(tl.int64) * head_pitch + j
    norm = tl.load(lse + row * tl.num_programs(1) + head) * LOG2E
    norm = tl.where(n > 0, norm, 0.0)
    s = tl.load(at, mask=j < n, other=-float("inf"))
    tl.store(at, tl.exp2(s - norm), mask=j < width)


def weights(score_RHm: Tensor, lse_RH: Tensor, lens_R: Tensor) -> None:
    """In place: base-2 logits of the first lens_R entries to weights, 0 beyond. lse natural."""
    R, H, m = score_RHm.shape
    block = 1024
    weights_kernel[(R, H, triton.cdiv(m, block))](
        score_RHm,
        lse_RH,
        lens_R,
        score_RHm.stride(0),
        score_RHm.stride(1),
        m,
        LOG2E=common.LOG2E,
        BN=block,
        num_warps=4,
    )
