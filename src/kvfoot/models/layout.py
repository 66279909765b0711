"""What a model looks like to the cache, and whether kvfoot can run it: refused with the reason, never guessed (D10)."""

from typing import Any

from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry

FAMILIES = {"llama": "Llama", "qwen2": "Qwen2"}
ROPE = {"default", "linear", "llama3", "yarn"}


def geometry_of(model: Any) -> Geometry:
    """Geometry of a Hugging Face causal language model. Raises UsageError for a model that is not supported."""
    config = model.config
    kind = getattr(config, "model_type", "?")
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"{kind} is an encoder-decoder model: kvfoot runs decoders only")
    if kind not in FAMILIES:
        raise UsageError(
            f"model family {kind!r} is not supported: {', '.join(FAMILIES.values())} are checked against transformers, "
            "others may use what the engine does not honour (soft-capped logits, attention sinks, shared layers)"
        )
    if getattr(config, "use_sliding_window", False):
        raise UsageError(
            f"{kind} with use_sliding_window=true is not supported: its window layers would be run as full"
        )
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    rope = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope not in ROPE:
        raise UsageError(
            f"RoPE of type {rope!r} changes with the length of the text: only {', '.join(sorted(ROPE))} are supported"
        )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    return Geometry(
        layers=config.num_hidden_layers,
        kv_heads=kv_heads,
        group=heads // kv_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        positions=config.max_position_embeddings,
    )
