"""`kvfoot doctor`: facts about the machine and a tiny model checked; exit code 1 where something is wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kvfoot.attention import sdpa


def test_a_healthy_machine(kvfoot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFOOT_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models" / "0123-v2").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "0123-v2" / "model.safetensors").write_bytes(bytes(2048))
    said = kvfoot("doctor")
    assert said.code == 0
    for word in (
        "Python",
        f"torch {torch.__version__}",
        "transformers",
        "threads",
        "0123-v2: 2.0 KiB",
        "naive",
        "sdpa",
    ):
        assert word in said.out
    graphs, steps = (
        next(line for line in said.out.splitlines() if word in line) for word in ("CUDA graphs", "retroattention")
    )
    assert all(name in graphs for name in ("full", "snapkv", "h2o", "heads", "refreshkv", "quest", "streamingllm"))
    assert steps.strip().startswith("step by step: retroattention (its steps read tokens before")
    assert "equal to transformers" in said.out
    assert "as promised" in said.out
    assert "failed" not in said.out
    assert said.err == ""


def test_no_cache_folder_yet(kvfoot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFOOT_HOME", str(tmp_path / "cache"))
    assert "not made yet" in kvfoot("doctor").out
    assert not (tmp_path / "cache").exists()


def test_a_backend_that_computes_wrongly(kvfoot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = sdpa.attend

    def wrong(*arguments: Any) -> Any:
        state = right(*arguments)
        return type(state)(state.out * 1.01, state.lse)

    monkeypatch.setattr(sdpa, "attend", wrong)
    said = kvfoot("doctor")
    assert said.code == 1
    assert "failed backend sdpa" in said.out
    assert "failed full attention" in said.out
    assert "backend sdpa, full attention" in said.line
