"""Bad input: one plain line that says the cure, an exit code, nothing half written."""

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from tinycli import save_tiny

from kvfoot.core.records import RunRecord


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "snapvk"}, ["unknown method 'snapvk'", "did you mean snapkv"]),
        ({"method": "snapkv", "set": "windw=8", "keep": "0.3"}, ["no option 'windw'", "did you mean window"]),
        ({"method": "snapkv", "set": "window=wide", "keep": "0.3"}, ["window='wide'", "int"]),
        ({"method": "snapkv", "set": "window", "keep": "0.3"}, ["--set window", "key=value"]),
        ({"method": "snapkv", "keep": "0"}, ["keep=0", "(0, 1]"]),
        ({"method": "snapkv", "keep": "1.5"}, ["keep=1.5", "(0, 1]"]),
        ({"method": "snapkv", "keep": "much"}, ["keep='much'", "not a number"]),
        ({"method": "snapkv", "keep": "0.3", "budget": "9"}, ["keep and budget exclude each other"]),
        ({"method": "snapkv"}, ["needs a size", "keep", "budget"]),
        ({"method": "full", "keep": "0.3"}, ["full takes neither"]),
        ({"method": "snapkv", "budget": "20"}, ["budget=20", "sinks + window = 64"]),
        ({"method": "snapkv", "keep": "0.3", "evict": "later"}, ["evict='later'", "post", "chunk"]),
        ({"chunk": "0"}, ["chunk=0", "at least 1"]),
        ({"chunk": "many"}, ["--chunk many", "all"]),
        ({"max-new-tokens": "0"}, ["max_new_tokens=0", "at least 1"]),
        ({"max-new-tokens": "4000"}, ["4096 positions", "shorten the prompt"]),
        ({"temperature": "-1"}, ["temperature=-1.0 is negative"]),
        ({"top-p": "0"}, ["top_p=0.0", "(0, 1]"]),
        ({"top-k": "-1"}, ["top_k=-1", "0 keeps all"]),
        ({"backend": "spda"}, ["unknown backend 'spda'", "did you mean sdpa"]),
        ({"dtype": "float8"}, ["dtype 'float8'"]),
        ({"device": "tpu"}, ["device 'tpu'"]),
        ({"kv-memory": "plenty"}, ["--kv-memory plenty", "2GiB", "0.9"]),
        ({"kv-memory": "1.5"}, ["--kv-memory 1.5", "0.9"]),
        ({"kv-memory": "0%"}, ["--kv-memory 0%", "0.9"]),
        ({"kv-memory": "0"}, ["--kv-memory 0", "0.9"]),
        ({"page-size": "0"}, ["page_size=0"]),
        ({"max-new-tokens": "three"}, ["--max-new-tokens", "integer"]),
        ({"modle": "x"}, ["--modle"]),
    ],
)
def test_wrong_values(run: Any, arguments: dict[str, str], words: list[str]) -> None:
    extra = [x for name in ("set", "modle") if name in arguments for x in (f"--{name}", arguments.pop(name))]
    said = run(*extra, **arguments)
    assert said.code == 2
    assert said.out == ""
    for word in words:
        assert word in said.line


def test_a_missing_argument(kvfoot: Any) -> None:
    said = kvfoot("run", "--model", "smollm2")
    assert said.code == 2
    assert "--prompt-file" in said.line


def test_both_kinds_of_question(run: Any) -> None:
    said = run("--question", "Why?", "--question-after", "When?")
    assert (said.code, said.out) == (2, "")
    assert "exclude each other" in said.line


def test_an_option_given_twice(run: Any) -> None:
    said = run("--set", "window=8", "--set", "window=9", method="snapkv", keep="0.3")
    assert said.code == 2
    assert "given twice" in said.line


@pytest.mark.parametrize("text", [b"", b" \n\t\n"])
def test_empty_prompt(run: Any, document: Path, text: bytes) -> None:
    document.write_bytes(text)
    said = run()
    assert said.code == 2
    assert "the prompt is empty" in said.line


@pytest.mark.parametrize("text", [b"caf\xe9 au lait", b"\xef\xbb\xbfc\xe9"])
def test_prompt_that_is_not_utf8(run: Any, document: Path, text: bytes) -> None:
    document.write_bytes(text)
    said = run()
    assert said.code == 2
    for word in ("not UTF-8", f"byte 0xe9 at offset {text.index(0xE9)}", "iconv"):
        assert word in said.line


def test_missing_prompt_file(run: Any, tmp_path: Path) -> None:
    said = run(prompt_file=tmp_path / "nowhere.txt")
    assert said.code == 2
    assert "No such file" in said.line
    assert "Is a directory" in run(prompt_file=tmp_path).line


def test_prompt_longer_than_the_positions(run: Any, document: Path) -> None:
    document.write_text("x" * 5000)
    said = run()
    assert said.code == 2
    assert "5000 prompt tokens" in said.line


def test_model_files(run: Any, model: Path, tmp_path: Path) -> None:
    assert "no such folder" in run(model=tmp_path / "nowhere").line
    broken = shutil.copytree(model, tmp_path / "broken")
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    said = run(model=broken)
    assert said.code == 2
    assert "truncated" in said.line
    weights.unlink()
    assert "no weights" in run(model=broken).line
    weights.write_bytes(whole)
    (broken / "config.json").unlink()
    assert "no config.json" in run(model=broken).line


def test_a_gguf_that_is_none(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFOOT_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"MZ" + bytes(4000))
    said = run(model=path)
    assert said.code == 2
    assert "model.gguf" in said.line
    assert not (tmp_path / "cache" / "models").exists()


def test_numbers_that_are_not_finite(run: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def spoil(model: Any) -> None:
        model.model.layers[1].self_attn.v_proj.weight.data[3, 5] = float("nan")

    folder = save_tiny(tmp_path / "spoilt", change=spoil)
    capfd.readouterr()
    said = run(model=folder)
    assert said.code == 5
    assert "layer 1" in said.line


def test_pool_exhausted(run: Any, tmp_path: Path) -> None:
    said = run("--record", tmp_path / "out.json", kv_memory="64KiB")
    assert (said.code, said.out) == (3, "")
    for word in ("needs", "free", "raise --kv-memory"):
        assert word in said.line
    assert not (tmp_path / "out.json").exists()


def test_record_into_a_missing_folder_is_refused_before_the_run(run: Any, tmp_path: Path) -> None:
    said = run("--record", tmp_path / "no" / "out.json", model=tmp_path / "never-looked-at")
    assert (said.code, said.out) == (2, "")
    assert "there is no folder" in said.line
    assert "is a folder" in run("--record", tmp_path).line


def test_disk_full_on_the_record(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run()

    def full(self: RunRecord) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunRecord, "to_json", full)
    said = run("--record", tmp_path / "out.json")
    assert said.code == 1
    assert said.out == plain.out
    assert said.err.splitlines()[-1].startswith("kvfoot: the record")
    assert "No space left on device" in said.err
    assert [p.name for p in tmp_path.iterdir()] == ["document.txt"]


def test_unknown_method_to_list(kvfoot: Any) -> None:
    said = kvfoot("methods", "snapkvv")
    assert said.code == 2
    assert "did you mean snapkv" in said.line


def test_demo_refuses_before_it_loads(kvfoot: Any, tmp_path: Path) -> None:
    assert "there is no folder" in kvfoot("demo", "--svg", tmp_path / "no" / "x.svg", "--out", tmp_path).line
    assert "unknown line-up" in kvfoot("demo", "--line-up", "passkeys", "--out", tmp_path).line
    (tmp_path / "file").write_text("")
    assert "--out" in kvfoot("demo", "--out", tmp_path / "file").line
