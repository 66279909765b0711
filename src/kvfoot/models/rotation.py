"""The model's own RoPE, applied by the engine: for methods that renumber positions (PRE_ROPE, decision D3)."""

import sys
from typing import Any

from torch import Tensor

from kvfoot.core.errors import UsageError


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

    def __call__(self, layer: int, x: Tensor, positions: Tensor) -> Tensor:
        """x [R, heads, T, D] rotated to positions int64 [R, T]."""
        if not self.rotated[layer]:
            return x
        if self.kinds is None:
            cos, sin = self.rope(x, positions)
            amplitude = getattr(self.rope, "attention_scaling", 1.0)
        else:
            cos, sin = self.rope(x, positions, self.kinds[layer])
            amplitude = getattr(self.rope, f"{self.kinds[layer]}_attention_scaling", 1.0)
        turned: Tensor = self.apply(x, x, cos / amplitude, sin / amplitude)[0]
        return turned
