"""A gated MLP's silu(gate) x up in one launch (naive_layer.gated)."""

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.triton import common

BLOCK = 1024


@triton.jit
def gated_kernel(
    gate,
    up,
    out,
    n,
    gate_pitch,
    up_pitch,
    BLOCK: tl.constexpr,
    EMULATE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = i < n
    kind: tl.constexpr = out.dtype.element_ty
    g = tl.load(gate + row * gate_pitch + i, mask=ok, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_pitch + i, mask=ok, other=0.0).to(tl.float32)
    s = common.rounded(g / (1.0 + tl.exp(-g)), kind, EMULATE)
    tl.store(out + row * n + i, common.rounded(s * u, kind, EMULATE).to(kind), mask=ok)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """See naive_layer.gated. gate and up [..., N], which may be halves of one tensor [..., 2 N]."""
    n = gate.shape[-1]
    g, u = (common.unit(x.flatten(0, -2)) for x in (gate, up))
    out = common.scratch((len(g), n), gate.dtype, gate.device)
    gated_kernel[(len(g), triton.cdiv(n, BLOCK))](
        g,
        u,
        out,
        n,
        g.stride(0),
        u.stride(0),
        BLOCK=BLOCK,
        EMULATE=common.INTERPRET,
        num_warps=4,
    )
    return out.view(gate.shape)
