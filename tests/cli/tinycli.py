"""A tiny random Llama in a folder, and the command line in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DOCUMENT = "The keys and values of many tokens are kept, and the others are freed at once.\n" * 6


def save_tiny(folder: Path, positions: int = 4096, change: Callable[[Any], None] | None = None) -> Path:
    """2 layers, 4 query heads, 2 KV heads, no end token; `change` edits the model before it is saved."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": len(alphabet)}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": positions}
    torch.manual_seed(0)
    config = LlamaConfig(**shape, initializer_range=0.2, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = LlamaForCausalLM(config)
    if change is not None:
        change(model)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=bytes_).save_pretrained(folder)
    return folder


@dataclass
class Said:
    """What a command line answered."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The error: exactly one line."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("kvfoot: ")
        return lines[0].removeprefix("kvfoot: ")


def start(*arguments: object, out: Any = subprocess.PIPE) -> "subprocess.Popen[str]":
    """The command line in a process of its own, with two threads at most."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "kvfoot.cli.app", *(str(a) for a in arguments)]
    return subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment)
