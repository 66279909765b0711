"""Pieces that several methods share: protection of sinks and window, pooling, joining a group's query heads."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kvfoot.core.hooks import Keep, Seen

Join = Literal["mean", "max"]
Pool = Literal["avg", "max"]


def keep_best(seen: Seen, scores: Tensor, *, sink: int, window: int) -> Keep:
    """The highest scores fp32 [R, m], with ownership of positions p by range.

    p in [0, sink) kept, p in [sink, last - window] contested, p in (last - window, last] kept.
    """
    p = seen.positions
    return Keep.top(scores.masked_fill((p < sink) | (p > seen.last - window), torch.inf), seen.keep)


def pool(scores: Tensor, kernel: int, kind: Pool) -> Tensor:
    """Smooth along the last dimension, stride 1, zero padding on both sides that counts in a mean. kernel odd."""
    if kernel == 1:
        return scores
    flat = scores.reshape(1, -1, scores.shape[-1])
    if kind == "avg":
        return F.avg_pool1d(flat, kernel, 1, kernel // 2).view(scores.shape)
    return F.max_pool1d(flat, kernel, 1, kernel // 2).view(scores.shape)


def join(scores: Tensor, how: Join) -> Tensor:
    """Query heads of a KV head to one score: [R, H, m] -> [R, m]."""
    return scores.mean(1) if how == "mean" else scores.amax(1)
