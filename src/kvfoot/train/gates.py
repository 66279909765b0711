"""Hard-concrete gates and the constraint that closes them (Louizos et al. 1712.01312; PruLong, arXiv 2506.17121).

The constants are the released code's: the paper prints temperature 3/2, interval [-0.1, 1] and s(pi) without the
temperature, which give another, much softer gate. u is cut at 1e-6 as the paper says: the code's 1 - 1e-8 is 1 in fp32.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TAU = 2 / 3
LOW, HIGH = -0.1, 1.1
EDGE = 1e-6
INIT, SPREAD = 4.0, 0.01
"""log alpha begins at N(4, 0.01^2)."""


def gate(u: Tensor, log_alpha: Tensor) -> Tensor:
    """z in [0, 1], fp32, of uniform draws u in (0, 1): exactly 0 or 1 with the probabilities below."""
    c = torch.sigmoid((u.log() - (-u).log1p() + log_alpha) / TAU)
    return (c * (HIGH - LOW) + LOW).clamp(0, 1)


def shut(log_alpha: Tensor) -> Tensor:
    """P(z = 0)."""
    return torch.sigmoid(TAU * math.log(-LOW / HIGH) - log_alpha)


def wide_open(log_alpha: Tensor) -> Tensor:
    """P(z = 1)."""
    return torch.sigmoid(log_alpha - TAU * math.log((1 - LOW) / (HIGH - 1)))


def uniform(shape: tuple[int, ...], seed: int, *index: int) -> Tensor:
    """Draws in (0, 1), fp32 on the CPU, a function of the seed and the index (step, sequence): no state to save."""
    mixed = seed & 0xFFFFFFFF
    for part in index:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) & 0x7FFFFFFFFFFFFFFF
    generator = torch.Generator().manual_seed(mixed)
    return torch.rand(shape, generator=generator) * (1 - 2 * EDGE) + EDGE


class HardConcrete(nn.Module):
    """log alpha fp32 [layers, kv_heads] and the multipliers (lambda 1, lambda 2) of the sparsity constraint."""

    def __init__(self, layers: int, kv_heads: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.log_alpha = nn.Parameter(INIT + SPREAD * torch.randn(layers, kv_heads, generator=generator))
        self.multipliers = nn.Parameter(torch.zeros(2))

    def draw(self, seed: int, *index: int) -> Tensor:
        """z of one forward pass, one draw for all its layers."""
        u = uniform(tuple(self.log_alpha.shape), seed, *index).to(self.log_alpha.device)
        return gate(u, self.log_alpha)

    def sparsity(self) -> Tensor:
        """Expected share of closed gates: 1 - expected L0."""
        return shut(self.log_alpha).mean()

    @torch.no_grad()
    def undecided(self) -> float:
        """Expected share of gates that are neither 0 nor 1."""
        return float(1 - (shut(self.log_alpha) + wide_open(self.log_alpha)).mean())

    def penalty(self, sparsity: Tensor, target: float) -> Tensor:
        """lambda 1 (s - t) + lambda 2 (s - t)^2: gates descend on it, multipliers ascend."""
        gap = sparsity - target
        return self.multipliers[0] * gap + self.multipliers[1] * gap.square()


@dataclass(frozen=True)
class Schedule:
    """What changes with the step: learning rate (warm-up, cosine) and target sparsity (warm-up)."""

    steps: int
    target: float
    warm: float = 0.1
    floor: float = 0.01
    target_warm: float = 0.8
    target_start: float = 0.0
    logarithmic: bool = False

    def rate(self, step: int) -> float:
        """Of the peak: linear from 0 over `warm` of the steps, then a cosine to `floor`."""
        warm = max(1, math.ceil(self.warm * self.steps))
        if step < warm:
            return step / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))

    def sparsity(self, step: int) -> float:
        """Linear from `target_start` over `target_warm` of the steps, or linear in log(1 - t)."""
        warm = math.ceil(self.target_warm * self.steps)
        if step >= warm:
            return self.target
        share = step / warm
        if not self.logarithmic:
            return self.target_start + (self.target - self.target_start) * share
        low, high = math.log(1 - self.target_start), math.log(1 - self.target)
        return 1 - math.exp(low + (high - low) * share)


def optimizer(gates: HardConcrete, rate: float = 1.0, decay: float = 0.1) -> torch.optim.AdamW:
    """AdamW(0.9, 0.95) for both groups, the multipliers ascending; decay 0.1 is the code's, unpublished (trap 10)."""
    groups: list[dict[str, Any]] = [{"params": [gates.log_alpha]}, {"params": [gates.multipliers], "maximize": True}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=decay, foreach=False)
