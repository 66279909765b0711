"""`kvfoot train refresh`: from texts to a model folder that `kvfoot run` takes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tinycli import DOCUMENT


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(DOCUMENT * 4)
    return path


def test_train_and_run(kvfoot: Any, run: Any, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    base = ("train", "refresh", "--model", model, "--data", data, "--out", out, "--length", 64, "--tail", 8)
    base += ("--size", 16)
    said = kvfoot(*base, "--batch", 2, "--steps", 3, "--rate", "1e-3", "--lora", 2, "--set", "warm=1")
    assert said.code == 0, said.err
    assert "step 3 of 3, loss" in said.out
    record = json.loads((out / "train.json").read_text())
    assert (record["finished"], record["tail"], record["lora"], record["warm"]) == (True, 8, 2, 1)
    assert record["data"] == {"files": ["book.txt"], "length": 64}
    said = run("--set", "every=2", model=out / "model", method="refreshkv", budget="64")
    assert said.code == 0, said.err
    said = kvfoot(*base)
    assert "holds a run: pass --resume" in said.line


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            ("--length", 60, "--tail", 20, "--size", 40),
            "--length 60 leaves 40 tokens before the tail: more than --size",
        ),
        (("--batch", 0), "--batch 0: give at least 1"),
        (("--set", "steps=3"), "--set steps: it has an option of its own, --steps"),
        (("--length", 5000), "--length 5000 exceeds the model's 4096 positions"),
        (("--length", 4000, "--size", 1000), "a row of --length 4,000 needs"),
    ],
)
def test_bad_input(kvfoot: Any, model: Path, data: Path, tmp_path: Path, more: tuple[Any, ...], line: str) -> None:
    said = kvfoot("train", "refresh", "--model", model, "--data", data, "--out", tmp_path / "run", *more)
    assert said.code == 2
    assert line in said.err
