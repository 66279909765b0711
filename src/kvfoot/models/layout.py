"""What a model looks like to the cache, and whether kvfoot can run it: refused with the reason, never guessed (D10)."""

from typing import Any

from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry

FAMILIES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "olmo2": "OLMo2",
    "phi3": "Phi-3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
}
"""Families whose logits are tested against transformers'; their RoPE, norms and fused projections stay the model's."""

ENCODER_DECODER = ("is an encoder-decoder model", "decoders only are run: cross attention has a cache of its own")
LATENT = ("caches one latent vector per token (MLA)", "entries without keys and values per head")
SINKS = ("has attention sinks, an extra logit per head in the softmax", "backends that add it to the denominator")
SOFT_CAP = ("caps its attention logits softly (tanh)", "backends that cap them too")
WINDOW = ("has layers that attend to a window only", "rows whose entries leave with the window")
CHUNKED = ("has layers that attend within chunks only", "rows whose entries leave with the chunk")
REFUSED = {
    "bart": ENCODER_DECODER,
    "cohere2": WINDOW,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "gemma2": SOFT_CAP,
    "gemma3": WINDOW,
    "gemma3_text": WINDOW,
    "gpt_oss": SINKS,
    "llama4": CHUNKED,
    "llama4_text": CHUNKED,
    "olmo3": WINDOW,
    "t5": ENCODER_DECODER,
}
"""Families known to need more: (why, what the engine would have to have)."""

ROPE = {"default", "linear", "llama3", "yarn"}


def geometry_of(model: Any) -> Geometry:
    """Geometry of a Hugging Face causal language model. Raises UsageError for a model that is not supported."""
    config = model.config
    check(config)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    return Geometry(
        layers=config.num_hidden_layers,
        kv_heads=kv_heads,
        group=heads // kv_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        positions=config.max_position_embeddings,
    )


def check(config: Any) -> None:
    """Raises UsageError, with the reason, for a model that the engine would run wrongly or has not been tested with."""
    kind = getattr(config, "model_type", "?")
    found = _beyond(config)
    if found is not None:
        why, needed = found
        raise UsageError(f"model family {kind!r} {why}: not supported, it needs {needed}")
    if kind not in FAMILIES:
        raise UsageError(
            f"model family {kind!r} is not supported: {', '.join(FAMILIES.values())} are checked against transformers, "
            "others may use what the engine does not honour"
        )
    _check_rope(config, kind)


def _beyond(config: Any) -> tuple[str, str] | None:
    """What the engine does not honour, by the family or by the config's own fields."""
    kind = getattr(config, "model_type", "?")
    if kind in REFUSED:
        return REFUSED[kind]
    if getattr(config, "is_encoder_decoder", False):
        return ENCODER_DECODER
    if getattr(config, "kv_lora_rank", None):
        return LATENT
    if getattr(config, "attn_logit_softcapping", None):
        return SOFT_CAP
    window = windowed(config)
    if window is not None:
        return f"with sliding_window={window} {WINDOW[0]}", WINDOW[1]
    return None


def windowed(config: Any) -> int | None:
    """The window of the layers that have one, None where every layer sees every position the model has."""
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return None
    types = getattr(config, "layer_types", None)
    if types is not None and "sliding_attention" not in types:
        return None
    return window if window < config.max_position_embeddings else None


def _check_rope(config: Any, kind: str) -> None:
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    rope = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope not in ROPE:
        raise UsageError(
            f"model family {kind!r} with RoPE of type {rope!r}, which changes with the length of the text, is not "
            f"supported: it needs a factor fixed before the first token (types that are: {', '.join(sorted(ROPE))})"
        )
