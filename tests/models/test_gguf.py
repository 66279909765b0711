"""GGUF reading against the writer and reader of the `gguf` package, and against the torch model that was written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvfoot.core.errors import ModelError
from kvfoot.models import builtin, gguf

IDS = torch.tensor([[1, 40, 77, 5, 200, 131, 9, 2, 64]])


def converted(path: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model and the config of a GGUF after conversion; every weight comes from the file."""
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    builtin.convert(path, folder)
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval(), json.loads((folder / "config.json").read_text())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def test_header_equals_the_reference_reader(tiny, tmp_path):
    from gguf import GGUFReader

    path = tiny().write(tmp_path / "tiny.gguf")
    ours, reference = gguf.read_header(path), GGUFReader(str(path))
    expected = {key: item.contents() for key, item in reference.fields.items() if not key.startswith("GGUF.")}
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    assert ours.fields[epsilon] == 1e-5  # the shortest decimal, where the reference has 9.999999747378752e-06
    assert {**ours.fields, epsilon: expected[epsilon]} == expected
    assert {name: (t.shape, t.start) for name, t in ours.tensors.items()} == {
        t.name: (tuple(int(n) for n in reversed(t.shape)), t.data_offset) for t in reference.tensors
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_the_model_that_was_written(tiny, tmp_path, arch, tied):
    made = tiny(arch, "smollm" if arch == "llama" else "qwen2", tied)
    if arch == "qwen3":  # its head size is stated: no rope.dimension_count
        made.fields |= {"qwen3.attention.key_length": 16, "qwen3.attention.value_length": 16}
    model, config = converted(made.write(tmp_path / "tiny.gguf"), tmp_path / "out")
    assert torch.equal(logits(model), logits(made.model))
    assert config["tie_word_embeddings"] is tied
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in made.model.parameters())
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (2, 0)


def test_matrix_stored_twice_is_tied_and_the_finer_copy_is_used(tiny, tmp_path):
    from gguf import GGMLQuantizationType as Kind

    made = tiny("qwen2", "qwen2")
    made.tensors["output.weight"] = made.tensors["token_embd.weight"].copy()
    made.kinds = {"token_embd.weight": Kind.Q5_0, "output.weight": Kind.Q8_0}
    model, config = converted(made.write(tmp_path / "twice.gguf"), tmp_path / "out")
    assert config["tie_word_embeddings"] is True
    error = (model.model.embed_tokens.weight - made.model.model.embed_tokens.weight).abs().max()
    scale = made.model.model.embed_tokens.weight.abs().max()
    assert error < scale / 127  # Q5_0 would be off by scale / 32 somewhere


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_stored_types_come_out_as_the_reference_dequantises_them(tiny, tmp_path, kind):
    from gguf import GGMLQuantizationType, quants

    made = tiny(tied=False)
    quantised = GGMLQuantizationType[kind]
    made.kinds = {name: quantised for name, array in made.tensors.items() if array.ndim == 2}
    model, _ = converted(made.write(tmp_path / "q.gguf"), tmp_path / "out")
    for ours, name in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        written = made.tensors[f"blk.1.{name}.weight"]
        expected = torch.from_numpy(quants.dequantize(quants.quantize(written, quantised), quantised))
        found = model.get_parameter(f"model.layers.1.{ours}.weight")
        assert torch.equal(found, expected if kind == "F16" else expected.bfloat16().float())
    assert torch.equal(model.model.norm.weight, made.model.model.norm.weight)  # stored in fp32, kept in fp32


def test_pieces_make_the_same_file_as_one_piece(tiny, tmp_path, monkeypatch):
    made = tiny(tied=False)
    path = made.write(tmp_path / "tiny.gguf")
    for folder, chunk in (("one", 1 << 22), ("many", 7 * 64)):
        monkeypatch.setattr(gguf, "CHUNK", chunk)
        (tmp_path / folder).mkdir()
        builtin.convert(path, tmp_path / folder)
    one, many = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("one", "many"))
    assert one == many


def test_every_truncation_is_one_line_with_both_sizes(tiny, tmp_path):
    path = tiny().write(tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (4, 7, 23, 24, 30, 500, len(whole) // 3, len(whole) // 2, len(whole) - 64):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=rf"cut\.gguf: truncated, {size:,} bytes of at least .*again") as caught:
            gguf.read_header(cut)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start", [b"", b"PK\x03\x04 a zip", b"<!DOCTYPE html>"])
def test_other_files_are_refused_by_their_first_bytes(tmp_path, start):
    path = tmp_path / "page.gguf"
    path.write_bytes(start)
    with pytest.raises(ModelError, match="no GGUF file"):
        gguf.read_header(path)


def test_missing_file_and_other_version(tiny, tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        gguf.read_header(tmp_path / "none.gguf")
    path = tiny().write(tmp_path / "tiny.gguf")
    data = bytearray(path.read_bytes())
    data[4:8] = (1).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ModelError, match="version 1"):
        gguf.read_header(path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"general.architecture": "mamba"},
            "architecture 'mamba' is not read from GGUF .*original Hugging Face folder",
        ),
        ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling 'yarn'"),
        ({"llama.rope.dimension_count": 8, "llama.attention.key_length": 16}, "rotary, key and value sizes differ"),
        ({"split.count": 3}, "one of several files: join them"),
        ({"llama.block_count": None}, "the header lacks llama.block_count"),
        ({"llama.block_count": 3}, r"no tensor blk\.2\.attn_norm\.weight"),
        ({"llama.block_count": 1}, r"tensor blk\.1\..* has no place in a llama model"),
        ({"llama.feed_forward_length": 128}, r"blk\.0\.ffn_gate\.weight is \(96, 64\), the header says \(128, 64\)"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_written(tiny, tmp_path, change, line):
    made = tiny()
    made.fields |= change
    path = made.write(tmp_path / "tiny.gguf")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=line) as caught:
        builtin.convert(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_tensor_without_a_place_is_refused(tiny, tmp_path):
    made = tiny()
    made.tensors["rope_freqs.weight"] = np.ones(8, np.float32)  # Llama 3.1's RoPE scaling
    path = made.write(tmp_path / "tiny.gguf")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"rope_freqs\.weight has no place"):
        builtin.convert(path, tmp_path / "out")
