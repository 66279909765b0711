"""Pieces that several methods share: protection, pooling, joining a group's query heads, dividing a budget."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kvfoot.core.hooks import Seen
from kvfoot.core.ranking import Join

Pool = Literal["avg", "max"]


def protect(seen: Seen, scores: Tensor, *, sink: int, window: int) -> Tensor:
    """Scores fp32 [R, m], infinite where they do not count, with ownership of positions p by range.

    p in [0, sink) kept, p in [sink, last - window] contested, p in (last - window, last] kept.
    """
    p = seen.positions
    return scores.masked_fill((p < sink) | (p > seen.last - window), torch.inf)


def share(priorities: Sequence[Tensor], heads: Sequence[Tensor], keep: int, floor: Fraction) -> list[int]:
    """A layer's budget of `keep` x rows divided among its rows: exactly, and to no row more than it has.

    priorities: fp32 [R, m] per block, of any lengths; heads: int64 [R], its KV heads. A row's share is (1 - floor) x
    (its entries among the best of all rows) + floor x keep, in whole entries: what rounding leaves goes to the row
    furthest below its share. Among equal priorities a row's better-ranked entry goes first, so that equal rows get
    equal shares; then the lower head.
    """
    sizes = [p.shape[1] for p in priorities for _ in range(p.shape[0])]
    total = keep * len(sizes)
    least = torch.cat([p.flatten() for p in priorities]).topk(total, sorted=False).values.min()
    counts = [torch.stack([(p > least).sum(1), (p == least).sum(1), h]) for p, h in zip(priorities, heads, strict=True)]
    above, ties, head = torch.cat(counts, 1).tolist()  # the one wait for the device
    ranks = np.concatenate([np.arange(a, a + t) for a, t in zip(above, ties, strict=True)])
    tied = np.repeat(np.arange(len(sizes)), ties)[np.lexsort([np.repeat(head, ties), ranks])[: total - sum(above)]]
    best = np.array(above) + np.bincount(tied, minlength=len(sizes))

    whole = floor.denominator
    wanted = [int(n) * (whole - floor.numerator) + keep * floor.numerator for n in best]
    given = [min(w // whole, size) for w, size in zip(wanted, sizes, strict=True)]
    for _ in range(total - sum(given)):
        room = [i for i, size in enumerate(sizes) if given[i] < size]
        given[min(room, key=lambda i: (given[i] * whole - wanted[i], head[i]))] += 1
    return given


def pool(scores: Tensor, kernel: int, kind: Pool) -> Tensor:
    """Smooth along the last dimension, stride 1, zero padding on both sides that counts in a mean. kernel odd."""
    if kernel == 1 or not scores.numel():
        return scores
    flat = scores.reshape(1, -1, scores.shape[-1])
    if kind == "avg":
        return F.avg_pool1d(flat, kernel, 1, kernel // 2).view(scores.shape)
    return F.max_pool1d(flat, kernel, 1, kernel // 2).view(scores.shape)


def join(scores: Tensor, how: Join) -> Tensor:
    """Query heads of a KV head to one score: [R, H, m] -> [R, m]."""
    return scores.mean(1) if how == "mean" else scores.amax(1)


def uniform(key: Tensor) -> Tensor:
    """Integers int64 to fp32 in [0, 1) by a fixed mixing function: the same on every device and in every batch."""
    x = key & 0xFFFFFFFF
    for multiplier in (0x45D9F3B, 0x119DE1F3):
        x = ((x ^ (x >> 16)) * multiplier) & 0xFFFFFFFF
    return ((x ^ (x >> 16)) >> 8).to(torch.float32) / (1 << 24)
