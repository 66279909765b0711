"""`kvfoot demo`: the hidden number, the table, the records, the picture; on a tiny model, and the real thing."""

import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kvfoot.cli import lineups
from kvfoot.cli.lineups import LINEUPS, Case, LineUp, Run, passkey
from kvfoot.core.records import RunRecord


def test_the_number_is_hidden_once_and_is_decided_by_the_seed() -> None:
    cases = [passkey(seed) for seed in range(20)]
    for case in cases:
        assert case.document.count(case.expected) == 1
        assert re.fullmatch(r"\d{5}", case.expected)
        assert 0.2 < case.document.index(case.expected) / len(case.document) < 0.8
        assert case.expected in case.told
        assert case.expected not in case.question
    assert passkey(3) == cases[3]
    assert len({case.expected for case in cases}) == 20


def test_right_is_computed_from_the_answer() -> None:
    case = Case("", "", "123", "")
    assert case.right("It is 123.")
    assert not case.right("It is 12.")


def test_a_line_up_of_few_lines(kvfoot: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("Many words. " * 30, "Which?", "x", "Words.")
    runs = (Run("full"), Run("streaming", "0.25"), Run("snapkv", "0.5", "chunk", {"window": "8"}))
    monkeypatch.setitem(lineups.LINEUPS, "words", LineUp(str(model), lambda seed: case, runs, max_new_tokens=5))
    said = kvfoot("demo", "--line-up", "words", "--out", tmp_path / "out", "--svg", tmp_path / "demo.svg")
    assert said.code == 0, said.err
    names = ["1-full", "2-streaming", "3-snapkv"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{name}.json" for name in names]
    records = [RunRecord.from_json((tmp_path / "out" / f"{name}.json").read_text()) for name in names]
    for record in records:
        assert f"{record.footprint.kv:.3f}" in said.out
    assert records[2].config["options"]["window"] == 8
    assert records[1].memory.held_bytes < 0.4 * records[0].memory.held_bytes
    for word in ("KV foot-", "bytes held", "dense cache", "prefill", "per token", "answer", "wrong"):
        assert word in said.out
    ElementTree.parse(tmp_path / "demo.svg")


@pytest.mark.smollm2
@pytest.mark.slow
def test_the_demo(kvfoot: Any, tmp_path: Path) -> None:
    began = time.perf_counter()
    said = kvfoot("demo", "--out", tmp_path)
    assert said.code == 0, said.err
    assert time.perf_counter() - began < 300
    records = [RunRecord.from_json(path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert [r.config["method"] for r in records] == [run.method for run in LINEUPS["passkey"].runs]
    full, *others = records
    assert 3300 < full.tokens["prompt"] < 3900
    assert full.footprint.kv == 1
    for record in others:
        assert record.memory.held_bytes < 0.27 * full.memory.held_bytes
        assert 0.9 < record.footprint.kv < 1
    assert re.search(r"^ *full .* right *$", said.out, re.M)


@pytest.mark.smollm2
@pytest.mark.slow
def test_the_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    source = re.findall(r"```python\n(.*?)```", readme, re.S)[0]
    monkeypatch.chdir(tmp_path)
    Path("report.txt").write_text("The board met on Monday. It was decided to plant trees. Ann was there.\n" * 20)
    exec(compile(source, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "Footprint(kv=" in said
    assert "held_bytes=" in said
