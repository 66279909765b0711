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
from kvfoot.core.budget import Cut, PromptPass, held
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import POSITION, Plan, Plane
from kvfoot.engine.sequence import Sequence

SAID = (
    "synthetic: random keys and values (standard normal) written through the cache, as many per row as the plan keeps, "
    "positions evenly spread; the prompt's last token was really read"
)
WHOLE = np.iinfo(np.int32).max


def shortened(plan: Plan, geometry: Geometry, prompt: int) -> Plan:
    """The plan with two passes: all tokens but the last, which `fill` stands for, and the last.

    Raises UsageError for a plan that divides a layer's entries by scores: there are none.
    """
    if plan.ragged:
        raise UsageError(
            "the method divides a layer's entries among heads by their scores, which synthetic entries do not have: "
            "give --fill prompt"
        )
    counts = kept(plan, geometry) - 1  # the last token is appended to them, whatever cut decoding has
    counts[[geometry.window(i) is not None for i in range(geometry.layers)]] = WHOLE
    first = PromptPass(0, prompt - 1, Cut("all", counts.astype(np.int32)))
    return replace(plan, passes=(first, PromptPass(prompt - 1, prompt, plan.later)))


def later_passes(plan: Plan, first: int = 1) -> Plan:
    """What is left to read after `fill`: the plan's passes from the `first` on."""
    return replace(plan, passes=plan.passes[first:])


@torch.inference_mode()
def fill(cache: KVCache, sequence: Sequence, part: PromptPass, lens: np.ndarray | None = None) -> None:
    """Put a new sequence where the passes up to `part`, included, would have left it.

    lens: entries per row, int64 [layers, kv_heads]; default: what the cut of `part` leaves of a first pass.
    """
    rows, geometry = sequence.rows, cache.geometry
    lens = held(part.cut, rows.lens, part.stop - part.start, geometry) if lens is None else lens
    for layer in range(geometry.layers):
        for length in np.unique(lens[layer]).tolist():
            heads = tuple(np.flatnonzero(lens[layer] == length).tolist())
            if length:
                _append(cache, sequence, layer, heads, length, part.stop)
    rows.seen, sequence.promised = part.stop, lens.copy()


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
