"""`kvfoot train prulong` and `kvfoot train duo` on a tiny model, and `kvfoot run` with what they leave."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfoot.core.roles import HeadGates

TEXT = "".join(f"Line {i} says that {i * 7919 % 1000} comes after {i * 104729 % 997}.\n" for i in range(400))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


def line(verb: str, model: Path, data: Path, out: Path, *more: object, **instead: object) -> list[object]:
    options = {"steps": 3, "length": 256, "batch": 2, "sink": 4, "window": 32, "device": "cpu", "dtype": "float32"}
    flags = [x for name, value in (options | instead).items() for x in (f"--{name.replace('_', '-')}", value)]
    return ["train", verb, "--model", model, "--data", data, "--out", out, *flags, *more]


def test_prulong_in_pieces_and_a_run_with_its_heads(
    kvfoot: Any, run: Any, model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = kvfoot(*line("prulong", model, data, out, "--set", "measure=sampled", sparsity=0.5))
    assert (said.code, said.out) == (0, f"2 of 4 KV heads full: {out / 'heads.json'}\n"), said.err
    gates = HeadGates.load(out / "heads.json")
    assert (gates.scale, gates.sparsity, gates.sink, gates.window) == ("log_alpha", 0.5, 4, 32)
    assert gates.training["data"] == {"files": ["book.txt"], "length": 256}
    assert gates.training["measure"] == "sampled"
    assert gates.model["name"] == str(model)
    assert kvfoot("heads", "show", out / "heads.json").code == 0
    said = run("--method", "heads", "--set", f"file={out / 'heads.json'}", chunk=64)
    assert said.code == 0, said.err
    refused = kvfoot(*line("prulong", model, data, out, "--set", "measure=sampled", sparsity=0.5))
    assert (refused.code, "holds a run: pass --resume" in refused.err.splitlines()[-1]) == (2, True)
    again = kvfoot(*line("prulong", model, data, out, "--set", "measure=sampled", "--resume", sparsity=0.5))
    assert again.code == 0, again.err
    assert (HeadGates.load(out / "heads.json").gates == gates.gates).all()


def test_duo(kvfoot: Any, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = {"keys": 2, "words": 3, "length": 700, "batch": 1}
    said = kvfoot(
        *line("duo", model, data, out, "--set", "teacher_branch=true", "--set", "blocks=true", **more, window=128)
    )
    assert said.code == 0, said.err
    gates = HeadGates.load(out / "heads.json")
    assert (gates.scale, gates.rule, gates.sparsity, gates.sink) == ("alpha", "quantile", None, 128)
    assert gates.training["teacher_branch"] is True
    log = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 3
    assert log[-1]["distance"] > 0


@pytest.mark.parametrize(
    ("verb", "more", "instead", "said"),
    [
        ("prulong", [], {"sparsity": 1}, "sparsity=1.0 is the share of streaming heads, in [0, 1)"),
        ("prulong", [], {"length": 8192}, "--length 8192 exceeds the model's 4096 positions"),
        ("prulong", [], {"length": 0}, "--length 0: give at least 1"),
        ("prulong", [], {"window": 0}, "give at least a window of 1 token"),
        ("prulong", ["--set", "sparsity=0.3"], {}, "--set sparsity: it has an option of its own, --sparsity"),
        ("prulong", ["--set", "meazure=sampled"], {}, "--set: unknown field 'meazure' (did you mean measure"),
        ("prulong", ["--set", "measure=guessed"], {}, "measure='guessed' is none of expected, sampled"),
        ("prulong", ["--set", "rate=fast"], {}, "rate='fast' is not of type float"),
        ("duo", ["--supervise", "all"], {}, "--supervise all: questions or passkeys"),
        ("duo", ["--keys", "11"], {}, "give 1 to 10 keys"),
        ("duo", [], {"length": 300}, "10 passkeys of 32 words with their questions take"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    kvfoot: Any, model: Path, data: Path, tmp_path: Path, verb: str, more: list[str], instead: dict[str, Any], said: str
) -> None:
    answer = kvfoot(*line(verb, model, data, tmp_path / "out", *more, **instead))
    assert answer.code == 2
    assert said in answer.err.splitlines()[-1]


def test_data_that_is_missing_or_too_small(kvfoot: Any, model: Path, data: Path, tmp_path: Path) -> None:
    answer = kvfoot(*line("prulong", model, tmp_path / "none", tmp_path / "out"))
    assert answer.code == 2
    assert answer.line.startswith(f"--data {tmp_path / 'none'}: no such file: give texts (.txt")
    data.write_text("short")
    answer = kvfoot(*line("prulong", model, data, tmp_path / "out"))
    assert (answer.code, "--data has 5 tokens, a row of --length 256 needs 251 more" in answer.line) == (2, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_estimate_is_the_answer(kvfoot: Any, model: Path, data: Path, tmp_path: Path) -> None:
    answer = kvfoot(*line("prulong", model, data, tmp_path / "out", steps=1_000_000_000))
    assert answer.code == 2
    assert "hours on this CPU; pass --yes to go on" in answer.line
    answer = kvfoot(*line("prulong", model, data, tmp_path / "out", device="cuda"))
    assert (answer.code, "device 'cuda'" in answer.line) == (2, True)


@pytest.mark.parametrize("verb", ["prulong", "wgkv"])
def test_one_kv_head_per_layer_is_allowed_and_said(
    kvfoot: Any, model: Path, data: Path, tmp_path: Path, verb: str
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    one = tmp_path / "one"
    shutil.copytree(model, one)
    config = AutoConfig.from_pretrained(model)
    config.num_key_value_heads = 1
    AutoModelForCausalLM.from_config(config).save_pretrained(one)
    arguments = line(verb, one, data, tmp_path / "out")
    if verb == "wgkv":
        at = arguments.index("--sink")
        del arguments[at : at + 2]
    said = kvfoot(*arguments)
    assert said.code == 0, said.err
    assert "note: one KV head per layer: what is learned per head holds for the layer as a whole" in said.err
