"""From logits to the next token, reproducible per (seed, sequence, position) whatever runs beside it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.engine import noise


@dataclass
class Stream:
    """A sequence's own random numbers; `position` is the place in the text of the token that is chosen next."""

    key: int
    position: int = 0


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k keeps the k likeliest tokens (0: all), then top_p the smallest set of them whose
    probability reaches it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UsageError(f"temperature={self.temperature} is negative: 0 is greedy")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p} is outside (0, 1]")
        if self.top_k < 0:
            raise UsageError(f"top_k={self.top_k} is negative: 0 keeps all tokens")

    def generator(self, index: int) -> Stream:
        """The random numbers of sequence `index`."""
        return Stream(noise.stream(self.seed, index))

    def pick(self, logits: Tensor, generator: Stream) -> int:
        """One token from logits fp32 [vocabulary]; the stream moves on by a position."""
        if self.temperature == 0:
            return int(logits.argmax())
        stream, position = torch.tensor([[generator.key], [generator.position]], device=logits.device)
        generator.position += 1
        return int(self.choose(logits[None], stream, position))

    def choose(self, logits_BV: Tensor, stream_B: Tensor, position_B: Tensor) -> Tensor:
        """Tokens int64 [B] from logits fp32 [B, vocabulary], on their device and without waiting for it.

        The greatest of logit / temperature + Gumbel noise is a draw from the softmax.
        """
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        scaled = logits_BV / self.temperature
        if self.top_p < 1 or self.top_k:
            scaled = scaled.masked_fill(self._dropped(scaled), -torch.inf)
        return (scaled + noise.gumbel(stream_B, position_B, scaled.shape[-1])).argmax(-1)

    def _dropped(self, scaled: Tensor) -> Tensor:
        """bool [B, vocabulary]: tokens that top_k or top_p leaves out; the likeliest never is."""
        ranked, order = scaled.sort(dim=-1, descending=True, stable=True)
        if self.top_k:
            beyond = torch.arange(ranked.shape[-1], device=ranked.device) >= self.top_k
            ranked = ranked.masked_fill(beyond, -torch.inf)
        p = ranked.softmax(-1)
        out = p.cumsum(-1) - p >= self.top_p
        if self.top_k:
            out = out | beyond
        return torch.zeros_like(out).scatter(-1, order, out)
