"""`kvfoot tune` writes a settings file, and `kvfoot run --settings` takes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvfoot.core.records import RunRecord


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"{i} and some words to fill the room of prompt {i} " * 3} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tune_and_run(kvfoot: Any, run: Any, model: Path, prompts: Path, tmp_path: Path) -> None:
    out, record = tmp_path / "settings.json", tmp_path / "record.json"
    base = ("tune", "--model", model, "--prompts", prompts, "--dtype", "float32", "--chunk", "64", "--tokens", "4")
    said = kvfoot(*base, "--methods", "snapkv:window=8,streaming", "--target", "0.2", "--out", out)
    assert said.code == 0, said.err
    found = json.loads(out.read_text())
    assert found["method"] in ("snapkv", "streaming", "full")
    assert found["found"]["held_out_prompts"] == 2
    assert found["found"]["metric"] == "agreement"
    assert "held out of the search" in said.out
    assert run("--settings", out, "--record", record).code == 0
    config = RunRecord.from_json(record.read_text()).config
    assert (config["method"], config["keep"], config["chunk"]) == (found["method"], found["keep"], 64)
    assert config["options"] == found["options"]
    said = run("--settings", out, method="h2o")
    assert said.code == 2
    assert "--settings excludes --method" in said.line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "rogue"}, ["unknown metric 'rogue'", "did you mean rouge"]),
        ({"metric": "contains"}, ["line 1", "answers"]),
        ({"target": "0"}, ["--target 0"]),
        ({"methods": "full"}, ["at least one beside full"]),
        ({"methods": "snapvk"}, ["did you mean snapkv"]),
        ({"tokens": "0"}, ["--tokens 0"]),
        ({"prompts": "nowhere.jsonl"}, ["No such file"]),
    ],
)
def test_refusals(kvfoot: Any, prompts: Path, tmp_path: Path, change: dict[str, str], words: list[str]) -> None:
    out = tmp_path / "settings.json"
    options = {"model": "never-loaded", "prompts": str(prompts), "out": str(out)} | change
    said = kvfoot("tune", *(x for name, value in options.items() for x in (f"--{name}", value)))
    assert (said.code, said.out) == (2, "")
    for word in words:
        assert word in said.line
    assert not out.exists()
