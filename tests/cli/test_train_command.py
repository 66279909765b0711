"""`kvfoot train recall`: a tiny run in two pieces on a CPU, and everything it refuses in one line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluate"))

from taskdata import write

SHAPE = {"vocabulary": 512, "layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 128}
FIELDS = SHAPE | {"positions": 512, "batch": 2048, "parts": 2, "warm": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "data")


def arguments(data: Path, out: Path, *more: object, **fields: object) -> list[object]:
    """`--plan tiny` with a model of two layers."""
    line: list[object] = ["train", "recall", "--data", data, "--out", out, "--plan", "tiny", "--minutes", "0.0005"]
    line += ["--workers", "0", "--device", "cpu"]
    line += [x for name, value in (FIELDS | fields).items() for x in ("--set", f"{name}={value}")]
    return [*line, *more]


def test_a_run_in_pieces_leaves_a_model_that_the_package_loads(kvfoot: Any, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = kvfoot(*arguments(data, out, "--yes", "--piece", "0.00001"))
    assert first.code == 0, first.err
    assert first.out.startswith("step 1 of ")
    assert first.out.endswith(f"go on with --resume: {out}\n")
    refused = kvfoot(*arguments(data, out, "--yes"))
    assert refused.code == 2
    assert refused.line == f"--out {out} holds a run: pass --resume to go on with it, or give another folder"
    other = kvfoot(*arguments(data, out, "--yes", "--resume", layers=3))
    assert other.code == 2
    assert "of another shape: layers 2 (asked for 3); resume with the same options" in other.err.splitlines()[-1]
    second = kvfoot(*arguments(data, out, "--yes", "--resume"))
    assert (second.code, second.out) == (0, f"finished: {out}\n"), second.err
    record = json.loads((out / "record.json").read_text())
    assert (record["first"], record["recipe"]["batch"], record["shape"]["width"]) == (1, 2048, 64)

    from kvfoot.models.load import load

    assert load(str(out), device="cpu").model.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--minutes", "0"], "--minutes 0: give more than 0"),
        (["--workers", "-1"], "--workers -1: give 0 or more"),
        (["--plan", "recal"], "unknown plan 'recal' (did you mean recall?"),
        (["--resume"], "there is nothing to go on with: leave --resume out"),
        (["--set", "batch"], "--set batch: write it as KEY=NUMBER"),
        (["--set", "layrs=3"], "--set: unknown field 'layrs' (did you mean layers"),
        (["--set", "layers=2.5"], "--set layers=2.5: a whole number is needed"),
        (["--set", "seed=3"], "--set seed: it has an option of its own, --seed"),
    ],
)
def test_what_cannot_be_served_is_one_line(kvfoot: Any, data: Path, tmp_path: Path, more: list[str], line: str) -> None:
    said = kvfoot(*arguments(data, tmp_path / "out", *more))
    assert said.code == 2
    assert line in said.line


def test_a_state_that_is_cut(kvfoot: Any, data: Path, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"\x40" + bytes(50))
    said = kvfoot(*arguments(data, tmp_path, "--yes", "--resume"))
    assert said.code == 2
    assert "state.safetensors is cut or damaged (" in said.err.splitlines()[-1]


def test_data_that_is_missing_or_too_small(kvfoot: Any, tmp_path: Path) -> None:
    said = kvfoot(*arguments(tmp_path / "none", tmp_path / "out", "--yes"))
    assert (said.code, "none: no such folder: give one with books/" in said.line) == (2, True)
    assert not (tmp_path / "out").exists()
    said = kvfoot(*arguments(write(tmp_path / "small", characters=3000), tmp_path / "out", "--yes"))
    assert said.code == 2
    assert "characters of training books; plan 'tiny' needs 40,960" in said.err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_estimate_is_the_answer(kvfoot: Any, data: Path, tmp_path: Path) -> None:
    said = kvfoot("train", "recall", "--data", data, "--out", tmp_path)
    assert said.code == 2
    assert "hours on this CPU; pass --yes to go on" in said.line
