"""The model's own RoPE, applied by the engine: for methods that renumber positions (PRE_ROPE, decision D3) or look at
queries and keys before it (PROJECTIONS)."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvfoot.core.errors import UsageError

GROWTH = 4096
"""Ranks by which a table of angles grows."""


class Rotation:
    """RoPE of a Hugging Face decoder, layer by layer; layers without RoPE are left alone.

    The model itself is given position 0 for every token. That is the identity but for an amplitude (YaRN), which it has
    then applied: it is taken out here, so that it counts once.
    """

    def __init__(self, model: Any):
        base = model.get_decoder() if hasattr(model, "get_decoder") else model.model
        rope = getattr(base, "rotary_emb", None)
        if rope is None:
            raise UsageError(f"{type(model).__name__} has no RoPE that kvfoot finds: positions cannot be renumbered")
        attention = [layer.self_attn for layer in base.layers]
        self.apply = getattr(sys.modules[type(attention[0]).__module__], "apply_rotary_pos_emb")  # noqa: B009
        self.rope: Any = rope
        windowed_only = model.config.model_type == "cohere2"
        self.rotated = [
            a.sliding_window is not None if windowed_only else bool(getattr(a, "use_rope", True)) for a in attention
        ]
        types = getattr(model.config, "layer_types", None)
        self.kinds = types if types and hasattr(self.rope, f"{types[0]}_inv_freq") else None
        self._tables: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, x: Tensor, ranks: Tensor | range, below: int = 0) -> Tensor:
        """x [R, heads, T, D] rotated to its ranks: one range of T for every row, or int64 [R or 1, T].

        below: more than any of those, by default T.
        """
        if not self.rotated[layer]:
            return x
        kind = "" if self.kinds is None else self.kinds[layer]
        if isinstance(ranks, range):
            cos, sin = (table[:, ranks.start : ranks.stop] for table in self._table(kind, x, ranks.stop))
        else:
            cos, sin = (table[0][ranks] for table in self._table(kind, x, below or ranks.shape[1]))
        turned: Tensor = self.apply(x, x[:, :0], cos, sin)[0]  # turns two tensors: of the second, no head
        return turned

    def ready(self, like: Tensor, size: int) -> None:
        """The angles of ranks 0 to size - 1 of all layers, in the dtype of `like`: until more are asked for, the
        tables are the same memory.
        """
        for kind in [""] if self.kinds is None else sorted(set(self.kinds)):
            self._table(kind, like, size)

    def back(self, layer: int, x: Tensor, positions: Sequence[int]) -> Tensor:
        """x [R, heads, T, D], whose T tokens were rotated to these positions, as it was before; an amplitude stays."""
        if not self.rotated[layer]:
            return x
        kind = "" if self.kinds is None else self.kinds[layer]
        cos, sin = (table[:, list(positions)] for table in self._table(kind, x, max(positions) + 1))
        turned: Tensor = self.apply(x, x[:, :0], cos, -sin)[0]
        return turned

    def _table(self, kind: str, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, >= size, ...] of ranks 0, 1, ...; computed once and grown."""
        found = self._tables.get((kind, x.dtype))
        if found is None or found[0].shape[1] < size:
            every = torch.arange(-(-size // GROWTH) * GROWTH, device=x.device)[None]
            cos, sin = self.rope(x, every, kind) if kind else self.rope(x, every)
            amplitude = getattr(self.rope, f"{kind}_attention_scaling" if kind else "attention_scaling", 1.0)
            self._tables[kind, x.dtype] = found = cos / amplitude, sin / amplitude
        return found
