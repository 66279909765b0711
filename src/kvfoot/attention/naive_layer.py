"""What a decoder layer does around its attention, by its definition in plain torch: what its kernels are judged by.

x [..., N]; B tokens of a step, G KV heads, H query heads for each, D head size, R = B x G rows, row b x G + head.
Every operation rounds where transformers' models round: to the dtype of its result, and in between where they do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OUTPUTS = 8
"""What a kernel of `project` has of a weight's rows: outputs come in multiples of it."""


@dataclass(frozen=True)
class Turn:
    """RoPE that q and k are still to be given. cos, sin [1, B, D], of their dtype or fp32, which products then have."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Target:
    """Where a layer's new entries go: k, v [pages, page_size, D], positions int32 [pages, page_size, 1] or None."""

    k: Tensor
    v: Tensor
    positions: Tensor | None


def rms_norm(x: Tensor, weight_N: Tensor, eps: float, *, round_first: bool, plus: float = 0.0) -> Tensor:
    """x / sqrt(mean of squares + eps) in fp32, times (weight + plus). round_first: in x's dtype before the product."""
    h = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    h = h.to(x.dtype).float() if round_first else h
    return ((weight_N.float() + plus) * h).to(x.dtype)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) x up, the activation rounded first."""
    g = gate.float()
    return ((g / (1 + (-g).exp())).to(gate.dtype).float() * up.float()).to(gate.dtype)


def project(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> list[Tensor]:
    """x [..., K], one token, by each weight [N, K], a bias each or none: [..., N]. Summed in fp32, rounded once."""
    found = [torch.nn.functional.linear(x.float(), w.float()) for w in weights]
    found = [y + b.float() for y, b in zip(found, biases, strict=True)] if biases else found
    return [y.to(x.dtype) for y in found]


def gated_project(x: Tensor, gate_NK: Tensor, up_NK: Tensor) -> Tensor:
    """`gated` of the two products of one token."""
    gate, up = project(x, (gate_NK, up_NK), None)
    return gated(gate, up)


def turned(x: Tensor, turn: Turn) -> Tensor:
    """x [1, heads, B, D] rotated: its halves are the two coordinates of D / 2 planes."""
    cos, sin = turn.cos[:, None], turn.sin[:, None]
    low, high = x.chunk(2, -1)
    return (x * cos + torch.cat([-high, low], -1) * sin).to(x.dtype)


def store(
    q: Tensor, k: Tensor, v: Tensor, turn: Turn | None, slots_R: Tensor, position_B: Tensor, target: Target
) -> Tensor:
    """Entry r of k and v, and its token's position, into slot slots_R[r] of the arena; returns q by rows [R, H, D].

    q [1, G x H, B, D], k and v [1, G, B, D], q and k rotated by `turn` on the way. position_B: int64.
    """
    _, G, B, D = k.shape
    q, k = (x if turn is None else turned(x, turn) for x in (q, k))
    for plane, new in ((target.k, k), (target.v, v)):
        plane.view(-1, D).index_copy_(0, slots_R, new[0].transpose(0, 1).flatten(0, 1))
    if target.positions is not None:
        target.positions.view(-1, 1).index_copy_(0, slots_R, position_B.repeat_interleave(G)[:, None].int())
    return q[0].view(G, -1, B, D).permute(2, 0, 1, 3).flatten(0, 1)
