"""What a model looks like to the cache, and whether kvfoot can run it: refused with the reason, never guessed (D10)."""

import hashlib
import json
from typing import Any

from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry

FAMILIES = {
    "cohere2": "Command R7B",
    "gemma3_text": "Gemma-3",
    "gpt_oss": "GPT-OSS",
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
SOFT_CAP = ("caps its attention logits softly (tanh)", "backends that cap them too")
TWO_SIDED = ("attends in both directions", "a decoder that looks back only")
IMAGES = ("reads images beside text", "its text model alone (Gemma3ForCausalLM)")
CHUNKED = ("has layers that attend within chunks only", "rows whose entries leave with the chunk")
REFUSED = {
    "bart": ENCODER_DECODER,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "gemma2": SOFT_CAP,
    "gemma3": IMAGES,
    "llama4": CHUNKED,
    "llama4_text": CHUNKED,
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
        windows=windows(config),
        identity=identity(config),
    )


def identity(config: Any) -> str:
    """16 hex digits over the fields that decide what a head is; a fine-tuned model keeps those of its base."""
    names = ["model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["num_key_value_heads", "vocab_size"]
    text = json.dumps({name: getattr(config, name, None) for name in names}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    if getattr(config, "use_bidirectional_attention", False):
        return TWO_SIDED
    return None


def windows(config: Any) -> tuple[int | None, ...]:
    """The window of each layer in tokens, None where it sees every position the model has; () if no layer has one."""
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True) or window >= config.max_position_embeddings:
        return ()
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    found = tuple(window if kind == "sliding_attention" else None for kind in types)
    return found if any(found) else ()


def _check_rope(config: Any, kind: str) -> None:
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]  # by layer type, or one for all
    for rope in (p.get("rope_type") or p.get("type") or "default" for p in each):
        if rope in ROPE:
            continue
        raise UsageError(
            f"model family {kind!r} with RoPE of type {rope!r}, which changes with the length of the text, is not "
            f"supported: it needs a factor fixed before the first token (types that are: {', '.join(sorted(ROPE))})"
        )
