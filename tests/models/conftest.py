"""A tiny model in GGUF form, written by the `gguf` package's own writer, beside the torch model it came from."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

TEXT = (
    "The keys and values of 1234 tokens are kept; the others are freed. Don't keep what isn't read, naïve café.\n" * 3
)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass
class Tiny:
    """What a test may change before `write`: keys of the header, tensors (GGUF names, fp32), their storage types."""

    model: Any
    vocab: list[str]
    merges: list[str]
    fields: dict[str, Any]
    tensors: dict[str, np.ndarray]
    kinds: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        import gguf

        arch = self.fields["general.architecture"]
        writer = gguf.GGUFWriter(str(path), arch)
        for key, value in self.fields.items():
            if key == "general.architecture" or value is None:
                continue
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        for name, array in self.tensors.items():
            kind = self.kinds.get(name, gguf.GGMLQuantizationType.F32)
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def bpe() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE trained on TEXT, three control tokens first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return sorted(state["vocab"], key=state["vocab"].get), [" ".join(merge) for merge in state["merges"]]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of Llama's q and k rows: [heads, 2, half, ...] -> [heads, half, 2, ...]."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def make_tiny(arch: str = "llama", pre: str = "smollm", tied: bool = True) -> Tiny:
    """2 layers, width 64, 4 query heads, 2 KV heads, random weights; the torch model is `.model`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    vocab, merges = bpe()
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": len(vocab),
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **shape), dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.1)
    tensors = {}
    for name, weight in model.state_dict().items():
        array = weight.numpy().copy()
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            stem, suffix = rest.rsplit(".", 1)
            if arch == "llama" and stem in ("self_attn.q_proj", "self_attn.k_proj"):
                array = interleave(array, 4 if "q_proj" in stem else 2)
            tensors[f"blk.{layer}.{NAMES[stem]}.{suffix}"] = array
        elif name == "lm_head.weight":
            tensors |= {} if tied else {"output.weight": array}
        else:
            tensors[{"model.embed_tokens.weight": "token_embd.weight"}.get(name, "output_norm.weight")] = array
    fields: dict[str, Any] = {
        "general.architecture": arch,
        "general.name": "tiny",
        f"{arch}.block_count": 2,
        f"{arch}.context_length": 256,
        f"{arch}.embedding_length": 64,
        f"{arch}.feed_forward_length": 96,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": 2,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 5000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(vocab) - len(SPECIAL)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    return Tiny(model, vocab, merges, fields, tensors)


@pytest.fixture
def tiny() -> Callable[..., Tiny]:
    """Makes a tiny model: `tiny(arch, pre, tied)`."""
    return make_tiny


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KVFOOT_HOME", str(folder))
    return folder
