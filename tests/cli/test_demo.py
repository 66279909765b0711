"""`kvfoot demo`: the hidden number, the table, the records, the picture; on a tiny model, and the real thing."""

import itertools
import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kvfoot.cli import lineups
from kvfoot.cli.lineups import HOPS, LINEUPS, Case, LineUp, Run, Steps, chain, passkey
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
    assert (case.verdict("It is 123."), case.verdict("It is 12.")) == ("right", "wrong")


def test_a_chain_counts_up_to_its_first_error() -> None:
    case = Steps("", "", "", "", (' "a-b"', ', "b-c"', ', "c-d"', ', "d-e"'))
    for answer, done in (
        (' "a-b", "b-c", "c-d", "d-e"', 4),
        ('"a-b", "b-c", "c-d", "d-e", "e-f"', 4),
        ('"a-b", "b-x", "c-d", "d-e"', 1),
        ('"a-b", "b-c"', 2),
        ('"a-bb"', 0),
        ("", 0),
    ):
        assert case.share(answer) == done / 4
        assert case.verdict(answer) == f"{25 * done}%, {done} of 4 hops"


def test_the_keys_of_the_chain_are_in_the_text_once_and_lead_from_word_to_word() -> None:
    from kvfoot.evaluate.tasks.split import word_side

    case = chain(5)
    assert case == chain(5) != chain(6)
    keys = re.findall(r'"(\w+)-(\w+)"', case.expected)
    assert len(keys) == len(case.steps) == HOPS
    assert all(a[1] == b[0] for a, b in itertools.pairwise(keys))
    for a, b in keys:
        assert case.document.count(f'"{a}-{b}"') == 1
        assert {word_side(a), word_side(b)} == {"dev"}
    assert case.share(case.expected) == 1
    assert f'"{keys[0][0]}"' in case.question


def test_the_words_travel_with_their_licence() -> None:
    from importlib.resources import files

    folder = files("kvfoot").joinpath("data/words")
    assert "MIT License" in folder.joinpath("LICENSE").read_text(encoding="utf-8")


def test_a_line_up_of_few_lines(kvfoot: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("Many words. " * 30, "Which?", "x", "Words.")
    runs = (Run("full"), Run("streaming", "0.25"), Run("snapkv", "0.5", "chunk", {"window": "8"}))
    monkeypatch.setitem(lineups.LINEUPS, "words", LineUp(str(model), lambda seed: case, runs, max_new_tokens=5))
    said = kvfoot("demo", "--line-up", "words", "--out", tmp_path / "out", "--svg", tmp_path / "demo.svg")
    assert said.code == 0, said.err
    names = ["1-full", "2-streaming", "3-snapkv"]
    folder = tmp_path / "out" / "words"
    assert sorted(p.name for p in folder.iterdir()) == [f"{name}.json" for name in names]
    records = [RunRecord.from_json((folder / f"{name}.json").read_text()) for name in names]
    for record in records:
        assert f"{record.footprint.kv:.3f}" in said.out
    assert records[2].config["options"]["window"] == 8
    assert records[1].memory.held_bytes < 0.4 * records[0].memory.held_bytes
    for word in ("KV foot-", "bytes held", "dense cache", "prefill", "per token", "answer", "wrong"):
        assert word in said.out
    ElementTree.parse(tmp_path / "demo.svg")


def test_without_a_choice_every_line_up_runs(
    kvfoot: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineups, "LINEUPS", {})
    found = Case("Many words. " * 30, "Which?", "x", "Words."), Steps("Keys. " * 40, "Next?", "", "Keys.", ("a", "b"))
    for name, case in zip(("words", "steps"), found, strict=True):
        monkeypatch.setitem(lineups.LINEUPS, name, LineUp(str(model), lambda _, case=case: case, (Run("full"),), 3))
    said = kvfoot("demo", "--out", tmp_path / "out", "--svg", tmp_path / "demo.svg")
    assert said.code == 0, said.err
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == [
        "demo-steps.svg",
        "demo.svg",
        "out/steps/1-full.json",
        "out/words/1-full.json",
    ]
    assert said.out.index("Words.") < said.out.index("Keys.") < said.out.index("0%, 0 of 2 hops")


@pytest.mark.slow
def test_the_chain_on_the_shipped_model(kvfoot: Any, tmp_path: Path) -> None:
    """The full cache walks the chain; a quarter of it, chosen when the question is known, is not enough."""
    said = kvfoot("demo", "--line-up", "chain", "--out", tmp_path)
    assert said.code == 0, said.err
    shares = [int(share) for share in re.findall(r"(\d+)%, \d+ of 16 hops", said.out)]
    assert len(shares) == 3
    assert shares[0] >= 75
    assert max(shares[1:]) < shares[0] / 2
    full, *others = [RunRecord.from_json(path.read_text()) for path in sorted((tmp_path / "chain").iterdir())]
    assert 3700 < full.tokens["prompt"] < 4500
    assert all(record.memory.held_bytes < 0.27 * full.memory.held_bytes for record in others)


@pytest.mark.smollm2
@pytest.mark.slow
def test_the_demo(kvfoot: Any, tmp_path: Path) -> None:
    began = time.perf_counter()
    said = kvfoot("demo", "--line-up", "passkey", "--out", tmp_path)
    assert said.code == 0, said.err
    assert time.perf_counter() - began < 300
    records = [RunRecord.from_json(path.read_text()) for path in sorted((tmp_path / "passkey").iterdir())]
    assert [r.config["method"] for r in records] == [run.method for run in LINEUPS["passkey"].runs]
    full, *others = records
    assert 3300 < full.tokens["prompt"] < 3900
    assert full.footprint.kv == 1
    for record in others:
        assert record.memory.held_bytes < 0.27 * full.memory.held_bytes
        assert record.footprint.kv < 1
        assert (record.footprint.kv > 0.9) == (record.config["evict"] == "post")
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
