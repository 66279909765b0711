"""`kvfoot train wgkv` and `locret` on a tiny model, `kvfoot run` with what they leave, TensorBoard's events."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kvfoot.core.learned import Learned
from kvfoot.core.records import RunRecord

TEXT = "".join(f"Line {i} says that {i * 7919 % 1000} comes after {i * 104729 % 997}.\n" for i in range(900))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


def line(verb: str, model: Path, data: Path, out: Path, *more: object, **instead: object) -> list[object]:
    options = {"steps": 3, "length": 300, "batch": 2, "device": "cpu", "dtype": "float32"}
    options |= {"wgkv": {"window": 32}, "locret": {"width": 16, "length": 2500, "notes": 4}}.get(verb, {})
    flags = [x for name, value in (options | instead).items() for x in (f"--{name.replace('_', '-')}", value)]
    return ["train", verb, "--model", model, "--data", data, "--out", out, *flags, *more]


@pytest.mark.parametrize(("verb", "size"), [("wgkv", 8836), ("locret", 4160)])
def test_training_and_a_run_with_it(
    kvfoot: Any, run: Any, model: Path, data: Path, tmp_path: Path, verb: str, size: int
) -> None:
    out = tmp_path / "out"
    said = kvfoot(*line(verb, model, data, out))
    assert (said.code, said.out) == (0, f"{size:,} weights: {out / 'scores.safetensors'}\n"), said.err
    found = Learned.load(out / "scores.safetensors")
    assert (found.method, found.shape, found.model["name"]) == (verb, (2, 2, 2, 16), str(model))
    files = {"files": ["book.txt"], "length": 300 if verb == "wgkv" else 2500}
    assert found.training["data"] == (files if verb == "wgkv" else files | {"rows": "synthesis", "notes": 4})
    log = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    assert (log[-1]["step"], log[-1]["rate"] > 0) == (3, True)
    refused = kvfoot(*line(verb, model, data, out))
    assert (refused.code, "holds a run: pass --resume" in refused.line) == (2, True)
    assert kvfoot(*line(verb, model, data, out, "--resume")).code == 0

    options = ["--set", f"file={out / 'scores.safetensors'}"]
    options += ["--set", "stabilizers=20", "--set", "local=8"] if verb == "locret" else []
    path = tmp_path / "record.json"
    said = run(*options, "--record", path, "--evict", "chunk", method=verb, keep="0.3", chunk=100)
    assert said.code == 0, said.err
    record = RunRecord.from_json(path.read_text())
    assert record.config["options"]["digest"] == found.digest
    assert record.footprint.peak < 0.7
    said = run(method=verb, keep="0.3")
    assert (said.code, f"{verb} needs file=PATH" in said.line) == (2, True)
    other = "locret" if verb == "wgkv" else "wgkv"
    said = run("--set", f"file={out / 'scores.safetensors'}", method=other, keep="0.3")
    assert (said.code, f"was trained for {verb}, not for {other}" in said.line) == (2, True)


def test_gates_from_synthesis(kvfoot: Any, model: Path, data: Path, tmp_path: Path) -> None:
    from kvfoot.core.roles import HeadGates

    for verb, more in (("prulong", {"sparsity": 0.5}), ("duo", {})):
        out = tmp_path / verb
        base = {"length": 2500, "batch": 1, "steps": 1, "sink": 4, "window": 32, "notes": 4}
        said = kvfoot(*line(verb, model, data, out, "--rows", "synthesis", **(base | more)))
        assert said.code == 0, said.err
        assert HeadGates.load(out / "heads.json").training["data"]["rows"] == "synthesis"


@pytest.mark.parametrize(
    ("verb", "more", "said"),
    [
        ("wgkv", ["--rows", "books"], "--rows books: text, passkeys or synthesis"),
        ("wgkv", ["--window", "0"], "window=0: give at least 1"),
        ("wgkv", ["--set", "wieght=1"], "--set: unknown field 'wieght'"),
        ("locret", ["--rows", "text"], "--rows text: Locret learns from what is asked at the end"),
        ("locret", ["--length", "300"], "--length 300: 4 notes of 4 facts with 4 questions take up to"),
        ("duo", ["--rows", "text"], "--rows text: DuoAttention learns from what is asked at the end"),
    ],
)
def test_bad_input(kvfoot: Any, model: Path, data: Path, tmp_path: Path, verb: str, more: list[str], said: str) -> None:
    answer = kvfoot(*line(verb, model, data, tmp_path / "out", *more))
    assert (answer.code, said in answer.line) == (2, True), answer.err


def test_tensorboard_gets_every_step(kvfoot: Any, model: Path, data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, board = tmp_path / "out", tmp_path / "board"
    assert kvfoot(*line("wgkv", model, data, out, "--tensorboard", board, log_every=1)).code == 0
    events = EventAccumulator(str(board))
    events.Reload()
    log = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    assert (
        set(events.Tags()["scalars"])
        == {"step", *log[0]}
        == {"step", "loss", "distance", "closing", "admitted", "rate"}
    )
    losses = events.Scalars("loss")
    assert [e.step for e in losses] == [1, 2, 3]
    assert [e.value for e in losses] == pytest.approx([x["loss"] for x in log])


def test_tensorboard_that_is_not_there(
    kvfoot: Any, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    answer = kvfoot(*line("wgkv", model, data, tmp_path / "out", "--tensorboard", tmp_path / "board"))
    assert answer.code == 2
    assert answer.line == "--tensorboard needs the package tensorboard: pip install 'kvfoot[tensorboard]'"
