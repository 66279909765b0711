"""Products of one token with up to three weights in one launch (naive_layer.project), or with two and their gated
product (naive_layer.gated_project). The weights stay where they are: nothing is copied or joined.

Such a product reads its weights once and computes nothing else of note: each program streams a few of their rows, as
many bytes at a time as its registers hold.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.naive_layer import OUTPUTS
from kvfoot.attention.triton import common

WIDE = 1024
"""Elements of a row at a time."""


@triton.jit
def rows_of(w, x, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The products of BN rows at w with x [K]: fp32 [BN]."""
    n = tl.arange(0, BN)
    i = tl.arange(0, BK)
    acc = tl.zeros([BN, BK], tl.float32)
    for at in range(0, K, BK):
        ok = at + i < K
        v = tl.load(x + at + i, mask=ok, other=0.0).to(tl.float32)
        if K % BK == 0:
            t = tl.load(w + n[:, None] * K + at + i[None, :])
        else:
            t = tl.load(w + n[:, None] * K + at + i[None, :], mask=ok[None, :], other=0.0)
        acc += t.to(tl.float32) * v[None, :]
    return tl.sum(acc, 1)


@triton.jit
def project_kernel(
    x,
    w0,
    w1,
    w2,
    b0,
    b1,
    b2,
    out,
    first,
    second,
    K: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BIAS: tl.constexpr,
    EMULATE: tl.constexpr,
):
    p = tl.program_id(0)
    n = tl.arange(0, BN)
    kind: tl.constexpr = out.dtype.element_ty
    if p < first:
        row = p * BN
        y = rows_of(w0 + row.to(tl.int64) * K, x, K, BN, BK)
        if BIAS:
            y += tl.load(b0 + row + n).to(tl.float32)
    elif p < second:
        row = (p - first) * BN
        y = rows_of(w1 + row.to(tl.int64) * K, x, K, BN, BK)
        if BIAS:
            y += tl.load(b1 + row + n).to(tl.float32)
    else:
        row = (p - second) * BN
        y = rows_of(w2 + row.to(tl.int64) * K, x, K, BN, BK)
        if BIAS:
            y += tl.load(b2 + row + n).to(tl.float32)
    tl.store(out + p * BN + n, common.rounded(y, kind, EMULATE).to(kind))


@triton.jit
def gated_project_kernel(
    x,
    gate,
    up,
    out,
    K: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EMULATE: tl.constexpr,
):
    p = tl.program_id(0)
    n = tl.arange(0, BN)
    kind: tl.constexpr = out.dtype.element_ty
    row = p.to(tl.int64) * BN * K
    g = common.rounded(rows_of(gate + row, x, K, BN, BK), kind, EMULATE)
    u = common.rounded(rows_of(up + row, x, K, BN, BK), kind, EMULATE)
    s = common.rounded(g / (1.0 + tl.exp(-g)), kind, EMULATE)
    tl.store(out + p * BN + n, common.rounded(s * u, kind, EMULATE).to(kind))


def project(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> list[Tensor]:
    """See naive_layer.project: one, two or three weights. The sum is taken in another order than a library's."""
    sizes = [len(w) for w in weights]
    out = common.scratch((sum(sizes),), x.dtype, x.device)
    some = [*weights, weights[-1], weights[-1]][:3]
    added = [*(biases or weights), *[(biases or weights)[-1]] * 2][:3]
    first, second = sizes[0] // OUTPUTS, sum(sizes[:2]) // OUTPUTS
    K = x.shape[-1]
    project_kernel[(sum(sizes) // OUTPUTS,)](
        x,
        *some,
        *added,
        out,
        first,
        second,
        K=K,
        BN=OUTPUTS,
        BK=min(common.padded(K), WIDE),
        BIAS=biases is not None,
        EMULATE=common.INTERPRET,
        num_warps=4,
    )
    return [y.view(*x.shape[:-1], -1) for y in out.split(sizes)]


def gated_project(x: Tensor, gate_NK: Tensor, up_NK: Tensor) -> Tensor:
    """See naive_layer.gated_project."""
    N, K = gate_NK.shape
    out = common.scratch((N,), x.dtype, x.device)
    gated_project_kernel[(N // OUTPUTS,)](
        x,
        gate_NK,
        up_NK,
        out,
        K=K,
        BN=OUTPUTS,
        BK=min(common.padded(K), WIDE),
        EMULATE=common.INTERPRET,
        num_warps=4,
    )
    return out.view(*x.shape[:-1], N)
