"""A long chunk in pieces of few shapes: its own square, and its history in blocks of four chunks and of one.

cuDNN makes a plan for every shape that it meets, which takes longer than a layer does, and the whole history is a new
shape in every chunk. Parts join by log-sum-exp (decision D4; docs/decisions/0054).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvfoot.attention.state import State, merge

if TYPE_CHECKING:
    from kvfoot.attention.backend import Backend

Fetch = Callable[[int, int], tuple[Tensor, Tensor]]
"""Entries [start, stop) of R rows: keys and values [R, stop - start, D], valid until the next call."""

WIDE = 4
"""Chunks in a wide block: with 15 chunks stored, 6 blocks instead of 15 results of the chunk's size to join."""


def blocks(stored: int, n: int) -> list[tuple[int, int]]:
    """[0, stored) in blocks of WIDE x n, of n, and a rest shorter than n."""
    found, at = [], 0
    for size in (WIDE * n, n):
        while stored - at >= size:
            found.append((at, at + size))
            at += size
    return [*found, (at, stored)] if at < stored else found


def history(backend: "Backend", q_RHnD: Tensor, stored: int, scale: float, fetch: Fetch) -> State | None:
    """Attention of n queries, which see all of it, to a history; None where nothing is stored."""
    found: State | None = None
    for start, stop in blocks(stored, q_RHnD.shape[2]):
        part = backend.attend(q_RHnD, *fetch(start, stop), scale, causal=False)
        found = part if found is None else backend.join(found, part, torch.float32)
    return found


def join(a: State, b: State, dtype: torch.dtype) -> State:
    """The union of two disjoint parts, [R, H, n, D], its out in `dtype`."""
    both = merge(a, b)
    return State(both.out.to(dtype), both.lse)


def piecewise(q_GHnD: Tensor, k_GnD: Tensor) -> bool:
    """Whether a chunk is better attended to in pieces than over its gathered history: never in plain torch."""
    return False
