"""`kvfoot heads`: shown, rounded, converted there and back; and used by `kvfoot run`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvfoot.core.roles import HeadGates


@pytest.fixture
def gates(tmp_path: Path) -> Path:
    path = tmp_path / "heads.json"
    HeadGates(np.array([[2.0, -3.0], [0.5, 1.0]]), "log_alpha", 0.5, sink=2, window=30).save(path)
    return path


def test_show(kvfoot: Any, gates: Path) -> None:
    said = kvfoot("heads", "show", gates)
    assert said.code == 0
    assert "2 layers x 2 KV heads, log_alpha, sparsity 0.5, sink 2, window 30" in said.out
    assert "0 [██]        1" in said.out
    assert "1  ▓▓ [▓▓]    1" in said.out
    assert "full: 2 of 4 KV heads, 50.0% streaming" in said.out
    assert "full: 3 of 4" in kvfoot("heads", "show", gates, "--sparsity", "0.25").out


def test_round_and_convert(kvfoot: Any, gates: Path, tmp_path: Path, model: Path) -> None:
    assert kvfoot("heads", "round", gates, "--sparsity", "0.75", "--out", tmp_path / "m.tsv").code == 0
    assert (tmp_path / "m.tsv").read_text() == "1\t0\n0\t0\n"
    said = kvfoot("heads", "convert", tmp_path / "m.tsv", "--out", tmp_path / "m.json", "--window", 9, "--model", model)
    assert said.code == 0, said.err
    back = HeadGates.load(tmp_path / "m.json")
    assert (back.scale, back.window, back.model["name"]) == ("mask", 9, str(model))
    assert kvfoot("heads", "convert", gates, "--out", tmp_path / "g.tsv").code == 0
    assert np.allclose(HeadGates.load(tmp_path / "g.tsv").gates, 1 / (1 + np.exp([[-2.4, 3.6], [-0.6, -1.2]])))


def test_a_run_with_a_heads_file(run: Any, gates: Path, tmp_path: Path) -> None:
    said = run("--method", "heads", "--set", f"file={gates}", chunk=64, record=tmp_path / "out.json")
    assert said.code == 0, said.err
    from kvfoot.core.records import RunRecord

    record = RunRecord.from_json((tmp_path / "out.json").read_text())
    prompt = record.tokens["prompt"]
    assert record.kept == [[prompt, 32], [32, prompt]]
    assert record.config["options"]["roles"] == "10/01"


def test_bad_input_is_one_line(kvfoot: Any, run: Any, gates: Path, tmp_path: Path, model: Path) -> None:
    said = kvfoot("heads", "show", tmp_path / "none")
    assert (said.code, said.line) == (2, f"heads file {tmp_path / 'none'}: No such file or directory")
    said = kvfoot("heads", "round", gates, "--sparsity", "1", "--out", tmp_path / "x.tsv")
    assert (said.code, "in [0, 1)" in said.line) == (2, True)
    said = kvfoot("heads", "round", gates, "--out", tmp_path / "x.txt")
    assert (said.code, "name it .json (a heads file) or .tsv" in said.line) == (2, True)
    said = kvfoot("heads", "convert", gates, "--out", tmp_path / "no" / "x.tsv")
    assert (said.code, "was not written" in said.line) == (1, True)
    other = tmp_path / "other.tsv"
    other.write_text("1\t0\t1\n")
    said = kvfoot("heads", "convert", other, "--out", tmp_path / "x.json", "--model", model)
    assert (said.code, "is of a model of 1 layers x 3 KV heads, this one has 2 x 2" in said.line) == (2, True)
    said = run("--method", "heads", "--set", f"file={other}")
    assert (said.code, "this one has 2 x 2" in said.err.splitlines()[-1]) == (2, True)
    said = run("--method", "heads", "--set", f"file={gates}", keep="0.5")
    assert (said.code, "takes neither keep nor budget" in said.err.splitlines()[-1]) == (2, True)
    said = run("--method", "heads", "--set", "sparsity=2", "--set", f"file={gates}")
    assert (said.code, "in [0, 1)" in said.line) == (2, True)
