"""What is refused, and why: by the config alone, before a weight is read."""

from types import SimpleNamespace
from typing import Any

import pytest

from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.models.layout import FAMILIES, REFUSED, geometry_of

SMALL = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}


def geometry(kind: str, **fields: Any) -> Geometry:
    from transformers import AutoConfig

    return geometry_of(SimpleNamespace(config=AutoConfig.for_model(kind, **fields)))


@pytest.mark.parametrize(
    ("kind", "fields", "why", "needed"),
    [
        ("gemma2", {}, "caps its attention logits", "cap them too"),
        ("gemma3", {}, "reads images beside text", "Gemma3ForCausalLM"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attends in both directions", "looks back only"),
        ("deepseek_v3", {}, "one latent vector per token", "entries without keys"),
        ("llama4_text", SMALL, "chunks only", "leave with the chunk"),
        ("t5", {}, "encoder-decoder", "cross attention"),
        ("mbart", {}, "encoder-decoder", "cross attention"),
        (
            "gpt2",
            {},
            "is not supported: Command R7B, Gemma-3, GPT-OSS, Llama, Mistral, OLMo2, Phi-3, Qwen2, Qwen3, SmolLM3 are",
            "honour",
        ),
        ("llama", SMALL | {"attn_logit_softcapping": 50.0}, "caps its attention logits", "cap them too"),
    ],
)
def test_refused_with_the_reason_and_what_it_would_need(kind: str, fields: Any, why: str, needed: str) -> None:
    with pytest.raises(UsageError) as caught:
        geometry(kind, **fields)
    line = str(caught.value)
    assert line.startswith(f"model family {kind!r} ")
    assert why in line
    assert needed in line


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_rotation_that_changes_with_the_length_is_refused(rope: str) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8} if rope == "longrope" else {"factor": 2.0}
    parameters = {"rope_type": rope, "rope_theta": 1e4, "original_max_position_embeddings": 4096, **factors}
    sizes = SMALL | {"max_position_embeddings": 8192, "original_max_position_embeddings": 4096}
    with pytest.raises(UsageError, match=f"RoPE of type '{rope}', which changes with the length of the text"):
        geometry("phi3" if rope == "longrope" else "llama", rope_parameters=parameters, **sizes)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 4096}),
        ("phi3", {"sliding_window": 262144, "max_position_embeddings": 4096}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 512}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 4}),
        ("olmo2", {}),
        ("smollm3", {}),
    ],
)
def test_windows_that_no_token_leaves_are_run(kind: str, fields: Any) -> None:
    found = geometry(kind, **(SMALL | {"head_dim": 16} | fields))
    assert (found.layers, found.kv_heads, found.group, found.head_dim) == (4, 2, 2, 16)
    assert found.windows == ()


@pytest.mark.parametrize(
    ("kind", "fields", "windows"),
    [
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 32768}, (4096,) * 4),
        ("phi3", {"sliding_window": 2047, "max_position_embeddings": 4096}, (2047,) * 4),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 2},
            (None, None, 512, 512),
        ),
        ("gemma3_text", {"num_hidden_layers": 7, "sliding_window": 512}, (512,) * 5 + (None, 512)),
        ("gpt_oss", {}, (128, None, 128, None)),
    ],
)
def test_windows_layer_by_layer(kind: str, fields: Any, windows: tuple[int | None, ...]) -> None:
    found = geometry(kind, **(SMALL | {"head_dim": 16} | fields))
    assert found.windows == windows
    assert found.unwindowed.layers == len(found.open_layers) == windows.count(None)


def test_no_family_is_both_supported_and_refused() -> None:
    assert not set(FAMILIES) & set(REFUSED)
