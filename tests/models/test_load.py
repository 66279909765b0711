"""`load`: the same model from a folder and from GGUF, one-line errors, and the built-in model for real."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfoot.core.errors import ModelError, UsageError
from kvfoot.models import builtin, load
from kvfoot.models.load import Loaded, check_folder, fingerprint

IDS = torch.tensor([[1, 40, 77, 5, 200, 131, 9, 2, 64]])


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A model folder as a user has it."""
    (tmp_path / "tiny").mkdir()
    builtin.convert(tiny().write(tmp_path / "tiny.gguf"), tmp_path / "tiny")
    return tmp_path / "tiny"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def shard(folder: Path) -> list[Path]:
    """Split the weights of a folder into two files with an index."""
    from safetensors.torch import load_file, save_file

    whole = folder / "model.safetensors"
    weights = load_file(whole)
    names = sorted(weights)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    return [folder / file for file in parts]


def refused(name: object) -> str:
    """The one line that `load` refuses a name with."""
    with pytest.raises(ModelError) as caught:
        load.load(str(name))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_folder_and_gguf_give_the_model_that_was_written(tiny, folder, tmp_path, cache):
    expected = logits(tiny().model)
    path = tmp_path / "tiny.gguf"
    for name, source, revision in (
        (folder, "folder", fingerprint(folder)),
        (path, "gguf", builtin.sha256(path)),
    ):
        loaded = load.load(str(name), dtype="float32", device="cpu")
        assert isinstance(loaded, Loaded)
        assert torch.equal(logits(loaded.model), expected)
        assert (loaded.name, loaded.source, loaded.revision, loaded.dtype) == (
            str(name),
            source,
            revision,
            torch.float32,
        )
        assert not loaded.model.training
        assert type(loaded.model).__name__ == "LlamaForCausalLM"
        assert loaded.tokenizer.eos_token_id == loaded.model.generation_config.eos_token_id == 2
        assert len(loaded.tokenizer) == loaded.model.get_input_embeddings().num_embeddings


def test_gguf_in_other_clothes_is_recognised_by_its_bytes(folder, tmp_path, cache):
    (tmp_path / "blob").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    assert load.load(str(tmp_path / "blob"), device="cpu").source == "gguf"


def test_sharded_folder(tiny, folder):
    shard(folder)
    assert torch.equal(logits(load.load(str(folder), dtype="fp32", device="cpu").model), logits(tiny().model))


@pytest.mark.parametrize(
    ("asked", "given"),
    [("float32", torch.float32), ("bf16", torch.bfloat16), (torch.float16, torch.float16), ("fp16", torch.float16)],
)
def test_dtype_is_what_was_asked(folder, asked, given):
    loaded = load.load(str(folder), dtype=asked, device="cpu")
    assert loaded.dtype == given
    assert {weight.dtype for weight in loaded.model.parameters()} == {given}


def test_auto_dtype_follows_the_processor(monkeypatch):
    monkeypatch.setattr(load, "_cpu_has_bf16", lambda: True)
    assert load._dtype("auto", "cpu") == torch.bfloat16
    monkeypatch.setattr(load, "_cpu_has_bf16", lambda: False)
    assert load._dtype("auto", "cpu") == torch.float32
    assert load._dtype("auto", "cuda:0") == torch.bfloat16


@pytest.mark.parametrize(
    ("flags", "has"),
    [("avx2 avx512f", False), ("avx2 amx_bf16 amx_tile", True), ("avx512_bf16", True), ("avx_bf16x", False)],
)
def test_processor_flags(monkeypatch, flags, has):
    monkeypatch.setattr(Path, "read_text", lambda self: f"processor : 0\nflags : fpu {flags} sse\n")
    assert load._cpu_has_bf16() is has


def test_unknown_dtype_and_device_name_the_known(folder, monkeypatch):
    with pytest.raises(UsageError, match=r"dtype 'bfloat61' \(did you mean bfloat16"):
        load.load(str(folder), dtype="bfloat61")
    with pytest.raises(UsageError, match="dtype 'int8'"):
        load.load(str(folder), dtype=torch.int8)
    with pytest.raises(UsageError, match="device 'gpu'"):
        load.load(str(folder), device="gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="there are 1 CUDA devices here"):
        load.load(str(folder), device="cuda:1")


def test_revision_of_a_folder_is_its_contents(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert fingerprint(copy) == fingerprint(folder)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(copy) != fingerprint(folder)


def test_missing_things_are_named_with_the_cure(folder, tmp_path, cache):
    assert "no such folder: give a folder" in refused(tmp_path / "none")
    assert refused(tmp_path / "none.gguf").endswith("no such file: give the path of a .gguf file")
    (tmp_path / "text.gguf").write_text("not a model")
    assert "no GGUF file (starts with b'not ')" in refused(tmp_path / "text.gguf")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json: save the tokenizer into the same folder" in refused(folder)
    (folder / "model.safetensors").unlink()
    assert "no weights (*.safetensors)" in refused(folder)
    (folder / "config.json").unlink()
    assert "no config.json: give a folder that save_pretrained wrote" in refused(folder)
    assert f"no config.json: give {tmp_path / 'text.gguf'}" in refused(tmp_path)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("keep", "line"),
    [
        (0, "no safetensors file, or cut in its header"),
        (5, "no safetensors file, or cut in its header"),
        (100, "truncated, 100 bytes of"),
        (-1, "truncated, {short:,} bytes of {whole:,}"),
    ],
)
def test_truncated_weights(folder, keep, line):
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:keep])
    found = refused(folder)
    assert line.format(short=len(data) - 1, whole=len(data)) in found
    assert found.endswith("download or copy the folder again")


def test_shard_missing_and_short_and_index_damaged(folder):
    first, second = shard(folder)
    size = second.stat().st_size
    second.write_bytes(second.read_bytes()[:-10])
    assert f"b.safetensors: truncated, {size - 10:,} bytes of {size:,}" in refused(folder)
    second.unlink()
    assert "shard b.safetensors is missing" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json: damaged" in refused(folder)
    assert first.exists()


def test_weights_that_the_file_lacks_are_never_random(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "no weights for model.layers.1.mlp.up_proj.weight (2 missing)" in refused(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "tokenizer_config.json"])
def test_damaged_json_is_one_line(folder, file):
    (folder / file).write_text((folder / file).read_text()[:40])
    assert "transformers cannot load it (" in refused(folder)


def test_encoder_decoder_and_models_that_are_no_decoder(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "t5", "is_encoder_decoder": True}))
    assert refused(folder) == f"{folder}: t5 is an encoder-decoder: give a decoder (causal LM)"
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert f"{folder}: model family 'clip' is not supported: Command R7B, Gemma-3" in refused(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    assert "no-such-model" in refused(folder)


def test_a_family_that_is_refused_is_refused_before_its_weights_are_read(folder, monkeypatch):
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gemma2"}))
    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")
    assert refused(folder).startswith(f"{folder}: model family 'gemma2' caps its attention logits softly")


def test_damaged_conversion_says_what_to_delete(tiny, tmp_path, cache):
    path = tiny().write(tmp_path / "tiny.gguf")
    load.load(str(path), device="cpu")
    (made,) = (cache / "models").iterdir()
    (made / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=f"delete {made}, it is made again"):
        load.load(str(path), device="cpu")
    with pytest.raises(ModelError, match=f"delete {made}, it is made again"):
        check_folder(made)


def test_hub_name_without_a_network_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "_unreachable", lambda: True)
    line = refused("somebody/some-model-that-is-not-cached")
    assert line.startswith("somebody/some-model-that-is-not-cached: not loaded from the hub (")
    assert line.endswith("check the name and the connection, or give a local folder")
    assert "(did you mean smollm2?)" in refused("smollm")


def test_unreachable_is_decided_by_the_name_lookup(monkeypatch):
    import socket
    import urllib.request

    def fails(*args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    assert load._unreachable() is True
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert load._unreachable() is False


def test_loading_is_silent_and_leaves_the_progress_bars_as_they_were(folder, capfd):
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled()
    load.load(str(folder), device="cpu")
    assert logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")


def test_import_is_silent_and_brings_neither_torch_nor_transformers():
    code = "import sys, kvfoot.models.load; print([m for m in ('torch', 'transformers', 'gguf') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.smollm2
def test_smollm2_speaks_and_ends_its_turn():
    loaded = load.load("smollm2", device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    assert (loaded.source, loaded.revision) == ("builtin", builtin.BUILTIN["smollm2"].gguf_sha256)
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert (tokenizer.eos_token_id, tokenizer.eos_token, tokenizer.bos_token_id) == (2, "<|im_end|>", 1)
    assert model.generation_config.eos_token_id == 2
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == 49152
    assert "You are a helpful AI assistant named SmolLM, trained by Hugging Face" in tokenizer.chat_template
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0][inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == 2  # it stops by itself, before
    assert len(answer) < 24


@pytest.mark.smollm2
def test_smollm2_loads_quickly_from_the_cache():
    load.load("smollm2", device="cpu")  # imports and, the first time, the download
    said: list[str] = []
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        load.load("smollm2", device="cpu", on_event=said.append)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.5
    assert not said
