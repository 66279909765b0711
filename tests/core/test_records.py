"""A record survives the disk, and nothing else is taken for one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvfoot.core.errors import UsageError
from kvfoot.core.records import Footprint, Memory, RunRecord, SequenceRecord, Timings, mean

RECORD = RunRecord(
    footprint=Footprint(0.5, 0.6, 0.7, 0.1 + 0.2),
    memory=Memory(10, 20, 40),
    timings=Timings(1.5, 1.6, None),
    tokens={"prompt": 7, "generated": 3},
    config={"method": "snapkv", "options": {"window": 3}, "keep": 0.25, "chunk": None},
    revision="abc",
    packages={"torch": "2"},
    device={"type": "cpu", "threads": 2},
    seed=3,
    sequences=[
        SequenceRecord(4, 1, Footprint(0.4, 0.5, 0.6, 0.7), [[1, 2], [3, 4]]),
        SequenceRecord(3, 2, Footprint(0.6, 0.7, 0.8, 0.9), [[2, 2], [4, 6]]),
    ],
)


def test_json_round_trip() -> None:
    assert RunRecord.from_json(RECORD.to_json()) == RECORD
    data = json.loads(RECORD.to_json())
    assert data["schema"] == 1
    assert data["interrupted"] is False


def test_kept_is_the_mean_over_the_batch() -> None:
    assert RECORD.kept == [[1.5, 2.0], [3.5, 5.0]]


def test_mean() -> None:
    assert mean([s.footprint for s in RECORD.sequences]) == Footprint(0.5, 0.6, 0.7, 0.8)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(schema: object) -> None:
    data = json.loads(RECORD.to_json()) | {"schema": schema}
    with pytest.raises(UsageError, match=f"schema {schema}; this kvfoot reads schema 1"):
        RunRecord.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{}", '{"schema": 1}', '{"schema": 1, "footprint": {"kv": 1}}']
)
def test_what_is_no_record(text: str) -> None:
    with pytest.raises(UsageError, match="not a run record"):
        RunRecord.from_json(text)


def test_save_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    RECORD.save(path)
    assert RunRecord.from_json(path.read_text()) == RECORD
    before = path.read_text()

    def full(self: RunRecord) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunRecord, "to_json", full)
    with pytest.raises(OSError, match="No space left"):
        replace(RECORD, seed=9).save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path], "a temporary file is left behind"


def test_save_into_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        RECORD.save(tmp_path / "none" / "run.json")
