"""A tiny peaked model of every supported family, with and without windows that tokens leave."""

from functools import cache
from typing import Any

import tiny

MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
COHERE = {"layer_norm_eps": 1e-5, "logit_scale": 0.5}
ROPE = {"rope_type": "default"}
GEMMA = {
    "query_pre_attn_scalar": 16,
    "rope_parameters": {
        "sliding_attention": {**ROPE, "rope_theta": 2000.0},
        "full_attention": {**ROPE, "rope_theta": 9000.0},
    },
}
GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"layers": 3, "kv_heads": 2, "group": 3, "positions": 1024},
    "qwen2": {"layers": 3, "kv_heads": 3, "group": 2, "head_dim": 16, "hidden": 96, "positions": 1024, "seed": 1},
    "qwen3": {"layers": 3, "kv_heads": 2, "group": 2, "head_dim": 16, "positions": 1024, "seed": 2},
    "olmo2": {"layers": 3, "positions": 1024, "seed": 3},
    "phi3": {"layers": 3, "positions": 1024, "seed": 4, "sliding_window": 1024},
    "mistral": {"layers": 3, "head_dim": 16, "positions": 1024, "seed": 5, "sliding_window": None},
    "smollm3": {"layers": 4, "positions": 1024, "seed": 6, "no_rope_layers": [1, 0, 1, 0]},
    "cohere2": {"layers": 4, "positions": 1024, "seed": 7, "sliding_window": 24, "layer_types": MIXED, **COHERE},
    "gemma3_text": {"layers": 4, "positions": 1024, "seed": 8, "sliding_window": 24, "layer_types": MIXED, **GEMMA},
    "gpt_oss": {"layers": 4, "positions": 1024, "seed": 9, "sliding_window": 24, "layer_types": MIXED, **GPT_OSS},
}
for name, window in {
    "mistral": {"sliding_window": 40},
    "phi3": {"sliding_window": 40},
    "qwen2": {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
}.items():
    SHAPES[f"{name}-window"] = SHAPES[name] | window
"""The same families with windows that tokens leave: Mistral and Phi-3 in every layer, Qwen from the second on."""
WINDOWED = [kind for kind in SHAPES if SHAPES[kind].get("sliding_window", 1024) not in (1024, None)]
FLAT = [kind for kind in SHAPES if kind != "gemma3_text"]
"""Those whose layers all have the same RoPE."""
DECIDED = [kind for kind in SHAPES if kind not in ("mistral-window", "phi3-window")]
"""Those with layers for a method to decide about."""


@cache
def pair(kind: str) -> tuple[Any, Any]:
    """The same model twice: one for the engine, one left alone, on transformers' own eager attention."""
    reference = build(kind)
    reference.set_attn_implementation("eager")
    return build(kind), reference


def build(kind: str, **change: Any) -> Any:
    return tiny.make(kind.partition("-")[0], **(SHAPES[kind] | change))
