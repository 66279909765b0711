"""From logits to the next token, reproducible per sequence whatever runs beside it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvfoot.core.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p keeps the smallest set of tokens whose probability reaches it."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UsageError(f"temperature={self.temperature} is negative: 0 is greedy")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p} is outside (0, 1]")

    def generator(self, index: int) -> torch.Generator:
        """A sequence's own stream of random numbers."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + index) % (1 << 63))

    def pick(self, logits: Tensor, generator: torch.Generator) -> int:
        """One token from logits fp32 [vocabulary]."""
        if self.temperature == 0:
            return int(logits.argmax())
        p = (logits.cpu() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ranked, order = p.sort(descending=True)
            ranked[ranked.cumsum(-1) - ranked >= self.top_p] = 0
            p = torch.zeros_like(p).scatter(0, order, ranked)
        return int(torch.multinomial(p, 1, generator=generator))
