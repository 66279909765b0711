"""`kvfoot run`: the answer on the standard output, everything else beside it."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kvfoot.core.records import RunRecord


def test_text_alone_is_on_the_standard_output(run: Any, model: Path, document: Path) -> None:
    from kvfoot.engine.engine import Engine

    said = run()
    with_python = Engine.load(str(model), dtype="float32").generate(document.read_text(), max_new_tokens=4)[0]
    assert said.code == 0
    assert said.out.rstrip("\n") == with_python.text.rstrip("\n")
    for word in ("KV footprint", "held", "peak", "dense", "prefill", "first token", "per token", "prompt", "generated"):
        assert word in said.err


def test_record_holds_how_it_was_made(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    said = run("--question", "Why?", "--set", "window=8", "--record", path, method="snapkv", keep="0.3", chunk="100")
    record = RunRecord.from_json(path.read_text())
    config = record.config
    assert said.code == 0
    assert config["method"] == "snapkv"
    assert config["options"]["window"] == 8
    assert (config["keep"], config["chunk"], config["evict"], config["question"]) == (0.3, 100, "post", "before")
    assert record.tokens["generated"] == 4
    assert not record.interrupted
    assert f"{record.footprint.kv:.3f}" in said.err


def test_a_prompt_that_is_kept_whole_is_said(run: Any) -> None:
    """A window of 8 leaves something to evict, one of 4,000 does not: the run is not silently uncompressed."""
    some = run("--set", "window=8", method="snapkv", keep="0.3")
    none = run("--set", "window=4000", method="snapkv", keep="0.3")
    assert (some.code, none.code) == (0, 0)
    assert "nothing was evicted" not in some.err
    assert "nothing was evicted" in none.err


def test_several_questions_are_one_batch(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    said = run("--question", "Why?", "--question", "Since when?", "--record", path)
    record = RunRecord.from_json(path.read_text())
    assert said.code == 0
    assert len(record.sequences) == 2
    assert record.sequences[0].prompt != record.sequences[1].prompt
    assert "Why?" in said.err
    assert "Since when?" not in said.out
    single = run("--question", "Why?")
    assert said.out.startswith(single.out)


def test_questions_after_share_one_kept_cache(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    said = run("--question-after", "Why?", "--question-after", "Why?", "--record", path, method="streaming", keep="0.3")
    records = [RunRecord.from_json((tmp_path / f"out.{i}.json").read_text()) for i in (1, 2)]
    assert said.code == 0
    assert {r.config["question"] for r in records} == {"after"}
    assert records[0].kept == records[1].kept
    first, _, second = said.out.rstrip("\n").partition("\n\n")
    assert first == second


def test_one_question_after_is_recorded_under_the_given_name(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert run("--question-after", "Why?", "--record", path).code == 0
    assert RunRecord.from_json(path.read_text()).config["question"] == "after"


def test_prompt_from_the_standard_input(run: Any, document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_file = run()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(document.read_bytes())))
    assert run(prompt_file="-").out == from_file.out


def test_a_byte_order_mark_is_no_part_of_the_prompt(run: Any, document: Path) -> None:
    plain = run()
    document.write_bytes(b"\xef\xbb\xbf" + document.read_bytes())
    assert run().out == plain.out


def test_chunk_all_is_one_pass(run: Any, tmp_path: Path) -> None:
    assert run("--record", tmp_path / "out.json", chunk="all").code == 0
    assert RunRecord.from_json((tmp_path / "out.json").read_text()).config["chunk"] is None


def test_sampling_follows_the_seed(run: Any) -> None:
    texts = [run("--temperature", 1.5, "--seed", seed, max_new_tokens=12).out for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_engine_options_reach_the_engine(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    said = run("--backend", "naive", "--page-size", 4, "--kv-memory", "64MiB", "--no-chat", "--record", path)
    assert said.code == 0
    config = RunRecord.from_json(path.read_text()).config
    assert (config["backend"], config["page_size"], config["chat"]) == ("naive", 4, False)


def test_a_reader_keeps_its_prompt_and_nobody_wonders(run: Any, tmp_path: Path) -> None:
    said = run(method="refreshkv", keep="0.1")
    assert said.code == 0
    assert "nothing was evicted" not in said.err
    path = tmp_path / "record.json"
    said = run("--set", "size=40", "--set", "window=8", "--record", path, method="refreshkv+snapkv", keep="0.5")
    assert said.code == 0, said.err
    record = json.loads(path.read_text())
    assert record["config"]["method"] == "refreshkv+snapkv"
    assert record["config"]["options"]["size"] == 40
    assert record["config"]["options"]["snapkv.window"] == 8
    assert record["footprint"]["read"] < record["footprint"]["kv"] < 1
