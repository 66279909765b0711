"""`kvfoot cache save`, `ask` and `show` on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
from tinycli import DOCUMENT, save_tiny

from kvfoot.cache.file import FORMAT
from kvfoot.core.records import RunRecord

HOW = ("--method", "snapkv", "--set", "window=8", "--keep", "0.5", "--dtype", "float32")


@pytest.fixture
def saved(kvfoot: Any, model: Path, document: Path, tmp_path: Path) -> Path:
    path = tmp_path / "document.kv"
    said = kvfoot("cache", "save", "--model", model, "--prompt-file", document, "--out", path, *HOW)
    assert (said.code, said.out) == (0, ""), said.err
    return path


def test_answers_are_those_of_run(kvfoot: Any, run: Any, saved: Path, tmp_path: Path) -> None:
    questions = ("--question-after", "Who?", "--question-after", "Why so?")
    expected = run(*questions, *HOW)
    record = tmp_path / "record.json"
    asked = [x for q in ("Who?", "Why so?") for x in ("--question", q)]
    said = kvfoot("cache", "ask", saved, *asked, "--max-new-tokens", 4, "--record", record)
    assert (said.code, said.out) == (0, expected.out)
    for i in (1, 2):
        found = RunRecord.from_json((tmp_path / f"record.{i}.json").read_text())
        assert found.config["resumed"]
        assert found.config["method"] == "snapkv"
        assert found.tokens["generated"] == 4


def test_show_reads_the_header_only(kvfoot: Any, saved: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    monkeypatch.setattr(safetensors.torch, "load_file", None)
    monkeypatch.setattr("kvfoot.models.load.load", None)
    said = kvfoot("cache", "show", saved)
    assert said.code == 0
    n = len(DOCUMENT.rstrip())
    for words in (
        str(model),
        "2 layers, 2 kv heads, 16 head dim",
        "float32",
        "snapkv keep=0.5 post window=8",
        f"{n} tokens",
        f"{4 * round(n / 2):,} entries, 49.9% of the document's",
        f"format {FORMAT}",
        "The keys and values of many tokens",
    ):
        assert words in said.out, said.out


def test_bad_files(kvfoot: Any, saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = saved.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    newer = tmp_path / "newer.kv"
    header = head["__metadata__"]["kvfoot"]
    head["__metadata__"]["kvfoot"] = header.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}')
    text = json.dumps(head).encode()
    newer.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    cut = tmp_path / "cut.kv"
    cut.write_bytes(data[:-100])
    other = save_tiny(tmp_path / "other", change=lambda m: m.lm_head.weight.data.mul_(2))
    capfd.readouterr()
    for arguments, words in [
        (("show", newer), [f"format {FORMAT + 1}", "update kvfoot"]),
        (("show", cut), ["truncated", f"{len(data):,}"]),
        (("show", tmp_path / "no.kv"), ["No such file"]),
        (("ask", cut, "--question", "Why?"), ["truncated"]),
        (("ask", saved, "--question", " "), ["the question is empty"]),
        (("ask", saved, "--question", "Why?", "--max-new-tokens", "0"), ["max_new_tokens=0"]),
        (("ask", saved, "--question", "Why?", "--max-new-tokens", "4000"), ["4096 positions"]),
        (("ask", saved, "--question", "Why?", "--model", other), ["another model", "weights"]),
        (("ask", saved, "--question", "Why?", "--model", tmp_path / "gone"), ["no such folder"]),
        (("save", "--model", "x", "--prompt-file", "x", "--out", tmp_path / "no" / "x.kv"), ["there is no folder"]),
        (("save", "--model", "x", "--prompt-file", "x", "--out", tmp_path), ["is a folder"]),
    ]:
        said = kvfoot("cache", *arguments)
        assert (said.code, said.out) == (2, ""), arguments
        for word in words:
            assert word in said.line
    assert not (tmp_path / "no").exists()
