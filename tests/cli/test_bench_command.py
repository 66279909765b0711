"""`kvfoot bench` on a tiny shape: the table is the record's, bad input is refused before anything is made."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfoot.bench import measure, memory, shapes
from kvfoot.bench.record import BenchRecord
from kvfoot.core.errors import UsageError

QUICK = ("--model-shape", "tiny", "--steps", 2, "--rounds", 2, "--warm", 1, "--dtype", "float32")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of 4 MiB and a product of 64 x 64 say nothing of the machine, and take no time."""
    monkeypatch.setitem(measure.COPY, "cpu", 1 << 22)
    monkeypatch.setitem(measure.PRODUCT, "cpu", 64)


def test_decode(kvfoot: Any, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    asked = ("--context", "1K", "--method", "snapkv", "--set", "window=8", "--keep", 0.12, "--beside", "both")
    said = kvfoot("bench", "decode", *QUICK, *asked, "--batch", 2, "--out", path)
    assert said.code == 0, said.err
    record = BenchRecord.from_json(path.read_text())
    assert (record.bench, record.model_shape, record.dtype, record.backend) == ("decode", "tiny", "float32", "sdpa")
    assert record.settings["context"] == 1024
    assert record.settings["entries"].startswith("synthetic")
    assert record.figures["copy_bytes_per_second"] > 0
    assert {"torch", "transformers", "kvfoot", "python"} <= set(record.packages)
    assert record.device["threads"] == torch.get_num_threads()
    sides = record.figures["sides"]
    assert list(sides) == ["snapkv keep=0.12 window=8 chunk", "full", "transformers"]
    lines = said.out.splitlines()
    first = next(iter(sides.values()))["tokens_per_second"]
    for line, (name, row) in zip(lines[1:], sides.items(), strict=False):
        cells = [f"{row[k]:{form}}" for k, form in (("ms", ".3f"), ("roofline_ms", ".3f"), ("ratio", ".2f"))]
        cells += [f"{row['kv_bytes'] / 1e6:.1f}", f"{row['tokens_per_second']:.1f}"]
        assert line.split() == [*name.split(), *cells, f"{first / row['tokens_per_second']:.2f}"]
    assert "weights streamed" in lines[4]
    assert f"copy {record.figures['copy_bytes_per_second'] / 1e9:.1f} GB/s" in lines[4]


def test_the_recorded_command_measures_the_same(kvfoot: Any, tmp_path: Path) -> None:
    path = tmp_path / "a record.json"
    options = ("--context", 300, "--method", "h2o", "--set", "recent=0.25", "--set", "group=max", "--budget", 40)
    assert kvfoot("bench", "decode", *QUICK, *options, "--out", path).code == 0
    record = BenchRecord.from_json(path.read_text())
    words = shlex.split(record.command)
    assert words[0] == "kvfoot"
    assert ("--page-size" in words, str(path) in words) == (False, True), "defaults are left out"
    path.unlink()
    assert kvfoot(*words[1:]).code == 0
    again = BenchRecord.from_json(path.read_text())
    assert (again.command, again.settings) == (record.command, record.settings)
    kv = [{name: row["kv_bytes"] for name, row in r.figures["sides"].items()} for r in (record, again)]
    assert kv[0] == kv[1]


def test_prefill_and_capacity(kvfoot: Any, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    shape = ("--model-shape", "tiny", "--dtype", "float32", "--out", path)
    asked = ("--method", "snapkv", "--set", "window=8", "--keep", "0.25", "--chunk", 64)
    said = kvfoot("bench", "prefill", *shape, *asked, "--context", 256, "--rounds", 1, "--warm", 64, "--beside", "both")
    assert said.code == 0, said.err
    record = BenchRecord.from_json(path.read_text())
    assert record.bench == "prefill"
    assert list(record.figures["sides"]) == ["snapkv keep=0.25 window=8 chunk", "full", "transformers"]
    assert "TFLOP/s" in said.out
    said = kvfoot("bench", "capacity", *QUICK, *asked, "--context", 240, "--kv-memory", "256KiB", "--out", path)
    assert said.code == 0, said.err
    sides = BenchRecord.from_json(path.read_text()).figures["sides"]
    # 124 pages with positions, 4 x 5 a sequence (58 entries kept of 232, 8 decoded); 128 without, 4 x 15
    assert [row["sequences"] for row in sides.values()] == [6, 2]
    assert "sequences" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model-shape", "llama-3.1-7b"), ["'llama-3.1-7b'", "did you mean llama-3.1-8b"]),
        (("--context", "16K"), ["--context 16384", "8192 positions"]),
        (("--context", "much"), ["--context much", "4K"]),
        (("--context", "100"), ["--context 100", "142 decoded tokens"]),
        (("--method", "snapvk"), ["'snapvk'", "did you mean snapkv"]),
        (("--method", "snapkv"), ["needs a size"]),
        (("--method", "snapkv", "--keep", "2"), ["keep=2", "(0, 1]"]),
        (("--method", "adakv", "--keep", "0.3", "--set", "window=8"), ["--fill prompt"]),
        (("--batch", "0"), ["--batch 0", "at least 1"]),
        (("--page-size", "0"), ["--page-size 0", "at least 1"]),
        (("--fill", "zeros"), ["--fill zeros", "prompt"]),
        (("--beside", "vllm"), ["--beside vllm", "transformers"]),
        (("--device", "tpu"), ["device 'tpu'"]),
        (("--dtype", "int8"), ["dtype 'int8'"]),
        (("--backend", "spda"), ["'spda'", "did you mean sdpa"]),
        (("--out", "/nowhere/x.json"), ["--out /nowhere/x.json", "no folder"]),
    ],
)
def test_bad_input(kvfoot: Any, arguments: tuple[str, ...], words: list[str]) -> None:
    said = kvfoot("bench", "decode", "--model-shape", "tiny", *arguments)
    assert said.code == 2
    assert said.out == ""
    for word in words:
        assert word in said.line


def test_memory_is_looked_at_before_anything_is_made(kvfoot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of Llama-3.1-8B in bf16 are 14.96 GiB, 128K tokens of its cache 16 GiB."""
    monkeypatch.setattr(memory, "free", lambda device: 30 << 30)
    build = shapes.build

    def no_weights(name: str, dtype: torch.dtype, device: Any, seed: int = 0) -> Any:
        if device != "meta":
            raise MemoryError(f"built on {device}")
        return build(name, dtype, device, seed)

    monkeypatch.setattr(shapes, "build", no_weights)
    shape = ("--model-shape", "llama-3.1-8b", "--dtype", "bfloat16", "--device", "cpu")
    said = kvfoot("bench", "decode", *shape, "--context", "128K", "--beside", "none")
    assert said.code == 2
    assert "weights 14.96 GiB, full 16.00 GiB" in said.line
    assert "30.00 GiB are free on cpu" in said.line
    with pytest.raises(MemoryError, match="built on cpu"):
        kvfoot("bench", "decode", *shape, "--context", "120K", "--beside", "none")
    said = kvfoot("bench", "capacity", *shape, "--context", "128K", "--kv-memory", "20GiB")
    assert "the pool 20.00 GiB" in said.err
    said = kvfoot("bench", "capacity", *shape, "--context", "128K", "--kv-memory", "10GiB")
    assert "one sequence needs 2097152 pages" in said.line


def test_the_page_names_every_shape_and_column(kvfoot: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    for name in shapes.SHAPES:
        assert f"`{name}`" in page
    said = kvfoot("bench", "decode", *QUICK, "--context", 100, "--beside", "none")
    for column in ("ms", "roofline", "ratio", "K/V, MB", "tokens/s", "/ first"):
        assert column in said.out
        assert f"| {column} |" in page


def test_kernels_need_a_gpu(kvfoot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = kvfoot("bench", "kernels")
    assert (said.code, said.out) == (2, "")
    assert "CUDA GPU" in said.line


def test_what_is_no_record(tmp_path: Path) -> None:
    for text in ("[]", "{}", "{", json.dumps({"schema": 2})):
        with pytest.raises(UsageError, match="record"):
            BenchRecord.from_json(text)
