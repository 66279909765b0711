from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kvfoot.core.hooks import Projections, Seen, require
from kvfoot.core.learned import Weights
from kvfoot.core.registry import register
from kvfoot.methods.learn.scored import SCORE, Scored, Shapes
from kvfoot.methods.tools import protect

WIDTH = 1024
"""Units of a retaining head, as published."""
STEP = 2.0**-10
"""Scores are compared in these steps. Equal tokens have equal scores in the first layer, where nothing but the token
counts: without steps the last bits of a sum would choose among them."""


def retaining(weights: Weights, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores fp32 [G, n] of q [G, H, n, D], k and v [G, n, D] before RoPE (arXiv 2410.01805, section 3).

    One network per layer over all its heads side by side: linear, SiLU, linear, without biases.
    """
    n = k.shape[1]
    parts = [q.permute(2, 0, 1, 3).reshape(n, -1), k.transpose(0, 1).reshape(n, -1), v.transpose(0, 1).reshape(n, -1)]
    inner = F.silu(torch.cat(parts, 1).float() @ weights["up"].T)
    return (inner @ weights["down"].T).T


def shapes(kv_heads: int, group: int, head_dim: int, width: int = WIDTH) -> Shapes:
    """A layer's weights."""
    return {"up": (width, (kv_heads * group + 2 * kv_heads) * head_dim), "down": (kv_heads, width)}


@register(
    "locret",
    paper="2410.01805",
    category="learn",
    stores="entries with the highest retaining scores + recent ones",
    reads="all stored",
)
@dataclass(frozen=True)
class Locret(Scored):
    """Locret: a trained network per layer foretells, from a token's own q, k and v, how much it will be attended to.

    file: scores.safetensors of kvfoot train locret; of another model it is refused. seed, instead of a file: random
    weights, a control. digest: of the weights; a record has it, and with it given no other weights are taken.
    stabilizers: recent tokens that stay as long as more of the prompt is to come, 2500 as published. local: last tokens
    of the prompt that stay, 100. Among equal scores the newer entry stays. Rows hold the budget from the first cut on
    (published: 6000, in chunks of 3072), and while decoding as well, where the published method appends.
    """

    stabilizers: int = 2500
    local: int = 100
    total: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stabilizers", "local"):
            require(getattr(self, name) >= 0, f"locret: {name}={getattr(self, name)} is negative")

    @property
    def protected(self) -> int:
        return max(self.stabilizers, self.local)

    def score(self, weights: Weights, fresh: Projections) -> Tensor:
        return retaining(weights, fresh.q, fresh.k, fresh.v)

    def shapes(self, kv_heads: int, group: int, head_dim: int) -> Shapes:
        return shapes(kv_heads, group, head_dim)

    def priority(self, seen: Seen) -> Tensor:
        recent = self.stabilizers if seen.left else self.local
        ranked = (seen.planes[SCORE][..., 0] / STEP).round().double() + seen.positions / 2.0**31
        return protect(seen, ranked, sink=0, window=recent)
