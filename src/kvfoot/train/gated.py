"""Training attention of learned scores: queries and keys before RoPE as well, and keys under write gates.

The model is given position 0, so that its rotation is the identity, and the attention rotates: the networks that are
trained see what the engine will show them (core.hooks.Projections).

Shapes: B = 1 row, G KV heads, H query heads per KV head, T tokens, n tokens of a document, D dimensions per head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kvfoot.models.rotation import Rotation
from kvfoot.train.mixed import Mixed, Near, full

BLOCK = 512
"""Queries that are attended at once under gates: their mask is [G, BLOCK, n]."""


class Turned(Mixed):
    """Full attention whose q and k are also seen before RoPE: `plain`."""

    def __init__(self, model: Any):
        super().__init__(Near())
        self.rotation = Rotation(model)
        self.positions: Tensor | None = None

    def placed(self, positions: Tensor) -> Tensor:
        self.positions = positions
        return torch.zeros_like(positions)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [1, G x H, T, D] and key [1, G, T, D] before RoPE, value [1, G, T, D] -> [1, T, G x H, D]."""
        assert self.positions is not None
        at = self.positions[None]
        q, k = self.rotation(layer, query, at), self.rotation(layer, key, at)
        return self.turned(layer, query, key, q, k, value, scale)

    def turned(
        self, layer: int, query: Tensor, key: Tensor, q: Tensor, k: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        """The same with q and k rotated as well."""
        return super().attend(layer, q, k, value, scale)


def gated(q: Tensor, k: Tensor, v: Tensor, scale: float, log_gate: Tensor, window: int) -> Tensor:
    """Causal attention over a document in which the logit of query i on key j gains log_gate[j] where i >= j + window.

    q: [B, G, H, n, D]; k, v: [B, G, n, D]; log_gate: fp32 [B, G, n], shared by a KV head's query heads (arXiv
    2512.17452) -> [B, G, H, n, D]. Block by block of queries: no mask of n x n is made.
    """
    B, G, H, n, D = q.shape
    if n <= window:
        return full(q, k, v, scale)
    parts = []
    every = torch.arange(n, device=q.device)
    for a in range(0, n, BLOCK):
        b = min(a + BLOCK, n)
        back = every[a:b, None] - every[None, :b]
        bias = torch.where(back >= window, log_gate[:, :, None, :b], 0.0).masked_fill(back < 0, -torch.inf)
        keys, values = (x[:, :, None, :b].expand(B, G, H, b, D).reshape(B * G, H, b, D) for x in (k, v))
        mask = bias.to(q.dtype).reshape(B * G, 1, b - a, b)
        out = F.scaled_dot_product_attention(
            q[:, :, :, a:b].reshape(B * G, H, b - a, D), keys, values, mask, scale=scale
        )
        parts.append(out.view(B, G, H, b - a, D))
    return torch.cat(parts, 3) if len(parts) > 1 else parts[0]
