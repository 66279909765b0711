"""A cache as a method leaves it after a prompt, without the prompt: real lengths and pages, random keys and values.

What a decode step costs depends on how many entries it reads, not on what they hold. The prompt's last token is really
read, so that readers choose from what is there. Records say that entries are synthetic.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kvfoot.bench.variant import kept
from kvfoot.cache.kv import KVCache
from kvfoot.core.budget import Cut, PromptPass, split
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import POSITION, Plan, Plane
from kvfoot.engine.sequence import Sequence

SAID = (
    "synthetic: random keys and values (standard normal) written through the cache, as many per row as the plan keeps, "
    "positions evenly spread; the prompt's last token was really read"
)
WHOLE = np.iinfo(np.int32).max
STEP = 512
"""Tokens of a pass that is not run."""


def shortened(plan: Plan, geometry: Geometry, prompt: int) -> Plan:
    """The plan with passes that `fill` stands for, all tokens but the last, and a pass of the last one.

    The former only say how many entries there are to be, for the pool: they come and never go. Raises UsageError for a
    plan that divides a layer's entries by scores: there are none.
    """
    if plan.ragged:
        raise UsageError(
            "the method divides a layer's entries among heads by their scores, which synthetic entries do not have: "
            "give --fill prompt"
        )
    counts = kept(plan, geometry) - 1  # the last token is appended to them, whatever cut decoding has
    counts[[geometry.window(i) is not None for i in range(geometry.layers)]] = WHOLE
    return replace(plan, passes=(*standing(counts, prompt - 1), PromptPass(prompt - 1, prompt, plan.later)))


def standing(lens: np.ndarray, tokens: int) -> tuple[PromptPass, ...]:
    """Passes over `tokens` tokens that would end with at most `lens` entries per row, int64 [layers, kv_heads]."""
    cut = Cut("all", lens.astype(np.int32))
    return tuple(PromptPass(a, b, cut) for a, b in split(tokens, STEP, 1)) if tokens else ()


@torch.inference_mode()
def fill(cache: KVCache, sequence: Sequence, whole: Plan) -> None:
    """Put a new sequence where the passes of `whole`, all but the last, would have left it."""
    rows, geometry = sequence.rows, cache.geometry
    lens, seen = kept(replace(whole, passes=whole.passes[:-1]), geometry), whole.passes[-1].start
    for layer in range(geometry.layers):
        for length in np.unique(lens[layer]).tolist():
            heads = tuple(np.flatnonzero(lens[layer] == length).tolist())
            if length:
                _append(cache, sequence, layer, heads, length, seen)
    rows.seen, sequence.promised = seen, lens


def _append(cache: KVCache, sequence: Sequence, layer: int, heads: tuple[int, ...], length: int, seen: int) -> None:
    pool = cache.pool
    shape = (len(heads), length, pool.head_dim)
    k, v = (torch.randn(shape, dtype=pool.dtype, device=pool.device) for _ in range(2))
    planes = () if cache.geometry.window(layer) is not None else sequence.plan.planes
    values = {plane.name: _values(plane, len(heads), length, seen, pool.device) for plane in planes}
    cache.append(sequence.rows, layer, heads, k, v, values)


def _values(plane: Plane, rows: int, length: int, seen: int, device: torch.device) -> Tensor:
    """[rows, length, width]: positions, or numbers in [0, 1)."""
    if plane.name == POSITION.name:
        at = torch.arange(length, device=device) * seen // length
        return at.to(plane.dtype).expand(rows, length)[..., None]
    return torch.rand(rows, length, plane.width, device=device).to(plane.dtype)
