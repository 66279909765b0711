"""Two things on disk: the released model (bf16, sharded, plain transformers), and the state of a run (fp32)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from kvfoot.core.errors import UsageError
from kvfoot.train.recall.model import Parameters
from kvfoot.train.recall.muon import Muon
from kvfoot.train.recall.options import ModelShape, Recipe
from kvfoot.train.recall.vocab import BOS, END, PAD

SHARD = 14 * 2**20  # bytes of tensors a file


def hf_config(shape: ModelShape) -> dict[str, Any]:
    """config.json; `rope_theta` beside `rope_parameters` because 5.2 and 5.17 read different ones."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta,
        "rope_parameters": {"rope_theta": shape.theta, "rope_type": "default"},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "bos_token_id": BOS,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "initializer_range": 0.02,
    }


def save_model(parameters: Parameters, shape: ModelShape, folder: Path) -> None:
    """bf16 safetensors in shards under 14 MiB, the index, config.json and generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    used = 0
    for name, value in parameters.items():
        tensor = value.detach().to(torch.bfloat16).cpu().contiguous()
        size = tensor.numel() * 2
        if used + size > SHARD - 2**16:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    index = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
    total = sum(tensor.numel() * 2 for tensors in shards for tensor in tensors.values())
    weights = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(hf_config(shape), indent=1) + "\n")
    generation = {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")


def load_model(folder: Path) -> tuple[ModelShape, Parameters]:
    """A released model in fp32, by its index."""
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder} has no config.json: it is not a model folder")
    config = json.loads(path.read_text())
    shape = ModelShape(
        config["vocab_size"],
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["head_dim"],
        config["intermediate_size"],
        config["rope_theta"],
        config["rms_norm_eps"],
        config["max_position_embeddings"],
    )
    files = sorted(set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()))
    tensors = {name: value.float() for file in files for name, value in load_file(folder / file).items()}
    return shape, tensors


def save_state(folder: Path, step: int, recipe: Recipe, shape: ModelShape, parameters: Parameters, muon: Muon) -> None:
    """Everything a resumed run needs, written beside and then renamed, so that a cut leaves the old state."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"parameter.{name}": value.detach().contiguous() for name, value in parameters.items()}
    tensors.update({f"optimizer.{name}": value for name, value in muon.state().items()})
    meta = {"step": str(step), "recipe": json.dumps(asdict(recipe)), "shape": json.dumps(asdict(shape))}
    save_file({name: value.cpu() for name, value in tensors.items()}, folder / "state.tmp", metadata=meta)
    (folder / "state.tmp").replace(folder / "state.safetensors")


def load_state(folder: Path, recipe: Recipe, shape: ModelShape, parameters: Parameters, muon: Muon) -> int:
    """Fill `parameters` and `muon`; -> the next step. `UsageError` for another shape or another recipe."""
    from safetensors import SafetensorError, safe_open

    path = folder / "state.safetensors"
    if not path.is_file():
        raise UsageError(f"{path} is missing: there is nothing to resume; run without --resume")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata()
    except SafetensorError as error:
        raise UsageError(f"{path} is cut or damaged ({error}): delete it and start anew") from None
    for name, ours in (("shape", asdict(shape)), ("recipe", asdict(recipe))):
        theirs = json.loads(meta[name])
        different = sorted(key for key in ours if ours[key] != theirs.get(key))
        if different:
            wanted = ", ".join(f"{key} {theirs.get(key)} (asked for {ours[key]})" for key in different)
            raise UsageError(f"{path} is of another {name}: {wanted}; resume with the same options or start anew")
    tensors = load_file(path)
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(tensors[f"parameter.{name}"])
    muon.load({name.removeprefix("optimizer."): value for name, value in tensors.items() if name.startswith("opt")})
    return int(meta["step"])
