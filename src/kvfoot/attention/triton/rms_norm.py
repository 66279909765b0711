"""RMSNorm in one launch (naive_layer.rms_norm): a program per token, or per head where heads are normalised."""

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common


@triton.jit
def rms_norm_kernel(
    x,
    weight,
    out,
    pitch,
    eps,
    plus,
    N: tl.constexpr,
    NP: tl.constexpr,
    FIRST: tl.constexpr,
    EMULATE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, NP)
    ok = i < N
    kind: tl.constexpr = out.dtype.element_ty
    h = tl.load(x + row * pitch + i, mask=ok, other=0.0).to(tl.float32)
    w = tl.load(weight + i, mask=ok, other=0.0).to(tl.float32) + plus
    h = h * tl.rsqrt(tl.sum(h * h, 0) / N + eps)
    if FIRST:
        h = common.rounded(h, kind, EMULATE)
    tl.store(out + row * N + i, common.rounded(h * w, kind, EMULATE).to(kind), mask=ok)


def rms_norm(x: Tensor, weight_N: Tensor, eps: float, *, round_first: bool, plus: float = 0.0) -> Tensor:
    """See naive_layer.rms_norm. The sum of squares is taken in another order than torch's: fp32's last bits differ."""
    N = x.shape[-1]
    rows = common.unit(x.reshape(-1, N))
    out = common.scratch((len(rows), N), x.dtype, x.device)
    wide = common.padded(N)
    rms_norm_kernel[(len(rows),)](
        rows,
        weight_N,
        out,
        rows.stride(0),
        eps,
        plus,
        N=N,
        NP=wide,
        FIRST=round_first,
        EMULATE=common.INTERPRET,
        num_warps=min(max(wide // 512, 1), 16),
    )
    return out.view(x.shape)
