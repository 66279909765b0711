from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kvfoot.core.budget import Budget
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Plan, Projections, Seen, require
from kvfoot.core.learned import Weights
from kvfoot.core.registry import register
from kvfoot.methods.evict.adakv import divide, ragged
from kvfoot.methods.learn.scored import SCORE, Scored, Shapes
from kvfoot.methods.tools import protect

WINDOW = 256
"""Recent tokens that are read without a gate, as published."""
EPS = 1e-6


def gates(weights: Weights, k: Tensor, turned: Tensor) -> Tensor:
    """Logits of the write gates, fp32 [G, n], of keys [G, n, D] before RoPE and after it (arXiv 2512.17452).

    Both are RMS-normalised with learned weights and go side by side through a layer of GELUs, per KV head.
    """
    both = torch.stack([k.float(), turned.float()], 2)  # [G, n, 2, D]
    both = both * (both.square().mean(-1, keepdim=True) + EPS).rsqrt() * weights["norm"][:, None]
    inner = torch.baddbmm(weights["up_bias"][:, None], both.flatten(2), weights["up"].mT)
    return torch.einsum("gnm,gm->gn", F.gelu(inner), weights["down"]) + weights["down_bias"]


def shapes(kv_heads: int, head_dim: int) -> Shapes:
    """A layer's weights, separate ones for every KV head."""
    G, D = kv_heads, head_dim
    return {"norm": (G, 2, D), "up": (G, 4 * D, 2 * D), "up_bias": (G, 4 * D), "down": (G, 4 * D), "down_bias": (G, 1)}


@register(
    "wgkv",
    paper="2512.17452",
    category="learn",
    stores="the window + older entries with the highest write gates, ragged",
    reads="all stored",
)
@dataclass(frozen=True)
class WGKV(Scored):
    """Write-gated KV: a trained gate per KV head says whether a token outlives the sliding window.

    file: scores.safetensors of kvfoot train wgkv; of another model it is refused. seed, instead of a file: random
    weights, a control. digest: of the weights; a record has it, and with it given no other weights are taken.
    window: default the file's own, else 256 as published. alpha: share of the budget that every head of a layer gets;
    at 0 one ranking of all its gates divides it. As published a token stays where its gate is above 0.1; here keep or
    budget says how many stay, and the gates say which: `keep` counts what has been read so far, chosen anew after
    every chunk (evict=chunk) as tokens leave the window.
    """

    window: int | None = None
    alpha: float = 0.0
    growing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.window is None or self.window >= 0, f"wgkv: window={self.window} is negative")
        require(0 <= self.alpha <= 1, f"wgkv: alpha={self.alpha} is the share that every head gets, in [0, 1]")

    @property
    def protected(self) -> int:
        return self.trained("window", WINDOW)

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        return ragged(super().prepare(geometry, prompt, chunk, budget))

    def score(self, weights: Weights, fresh: Projections) -> Tensor:
        return gates(weights, fresh.k, fresh.turned)

    def shapes(self, kv_heads: int, group: int, head_dim: int) -> Shapes:
        return shapes(kv_heads, head_dim)

    def priority(self, seen: Seen) -> Tensor:
        return protect(seen, seen.planes[SCORE][..., 0], sink=0, window=self.protected)

    def allocate(self, blocks: Sequence[Seen]) -> list[int]:
        return divide(self, blocks, self.alpha)
