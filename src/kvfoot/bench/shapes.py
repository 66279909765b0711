"""Shapes of public models: what their config.json says, as facts; weights are random. `tiny` is ours, for tests."""

from types import SimpleNamespace
from typing import Any

import torch

from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.core.geometry import Geometry
from kvfoot.models.layout import geometry_of

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)


def _llama3(factor: float) -> dict[str, Any]:
    """Llama 3's frequencies, stretched over 8,192 positions."""
    low_high = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor} | low_high


def _fields(kind: str, sizes: str, tied: bool, rope: float | dict[str, Any], eps: float, **more: Any) -> dict[str, Any]:
    """sizes: numbers in the order of SIZES; rope: theta, or all of its parameters."""
    parameters = rope if isinstance(rope, dict) else {"rope_type": "default", "rope_theta": rope}
    given = dict(zip(SIZES, map(int, sizes.split()), strict=True))
    same = {"model_type": kind, "tie_word_embeddings": tied, "rope_parameters": parameters, "rms_norm_eps": eps}
    return given | same | more


SHAPES: dict[str, dict[str, Any]] = {
    # hidden, intermediate, layers, heads, KV heads, vocabulary, positions
    "llama-3.1-8b": _fields("llama", "4096 14336 32 32 8 128256 131072", False, _llama3(8.0), 1e-5, head_dim=128),
    "llama-3.2-1b": _fields("llama", "2048 8192 16 32 8 128256 131072", True, _llama3(32.0), 1e-5, head_dim=64),
    "llama-3.2-3b": _fields("llama", "3072 8192 28 24 8 128256 131072", True, _llama3(32.0), 1e-5, head_dim=128),
    "mistral-7b": _fields(
        "mistral", "4096 14336 32 32 8 32768 32768", False, 1e6, 1e-5, head_dim=128, sliding_window=None
    ),
    "qwen2.5-0.5b": _fields("qwen2", "896 4864 24 14 2 151936 32768", True, 1e6, 1e-6, use_sliding_window=False),
    "qwen2.5-7b": _fields("qwen2", "3584 18944 28 28 4 152064 131072", False, 1e6, 1e-6, use_sliding_window=False),
    "qwen3-8b": _fields(
        "qwen3", "4096 12288 36 32 8 151936 40960", False, 1e6, 1e-6, head_dim=128, use_sliding_window=False
    ),
    "smollm2": _fields("llama", "576 1536 30 9 3 49152 8192", True, 1e5, 1e-5),
    "smollm2-1.7b": _fields("llama", "2048 8192 24 32 32 49152 8192", True, 1.3e5, 1e-5),
    "tiny": _fields("llama", "64 96 2 4 2 256 8192", False, 1e4, 1e-5),
}
"""smollm2 is the 135M model, mistral-7b is v0.3."""


def config_of(name: str) -> Any:
    """The transformers config; no token ends a generation. Raises UsageError for an unknown name."""
    from transformers import AutoConfig

    if name not in SHAPES:
        raise UsageError(f"unknown model shape {name!r}{did_you_mean(name, list(SHAPES))}")
    fields = {k: v for k, v in SHAPES[name].items() if k != "model_type"}
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return AutoConfig.for_model(SHAPES[name]["model_type"], **fields, **none)


def geometry(name: str) -> Geometry:
    """Of the shape, without making a model of it."""
    return geometry_of(SimpleNamespace(config=config_of(name)))


def build(name: str, dtype: torch.dtype, device: str | torch.device, seed: int = 0) -> Any:
    """The model with random weights, made where it is to run ("meta": no weights at all)."""
    from transformers import AutoModelForCausalLM

    config = config_of(name)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def weight_bytes(model: Any) -> int:
    """Bytes of all weights, shared ones once."""
    return sum(p.nbytes for p in model.parameters())


def streamed_bytes(model: Any) -> int:
    """Bytes of the weights that a decode step reads: all but an embedding table that is only looked up in."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return weight_bytes(model) - (0 if table is head else table.nbytes)


def linear_flops(model: Any) -> int:
    """Floating-point operations of the layers' products for one token, attention and the head aside."""
    return 2 * sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
