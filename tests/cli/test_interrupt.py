"""Ctrl-C: what was done so far is shown and recorded, marked interrupted; exit code 130."""

import signal
from pathlib import Path
from typing import Any

import pytest
from tinycli import start

from kvfoot.core.records import RunRecord


def test_while_writing(model: Path, document: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    base = ["run", "--model", model, "--prompt-file", document, "--dtype", "float32", "--record", path]
    process = start(*base, "--max-new-tokens", 3000)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    record = RunRecord.from_json(path.read_text())
    assert process.returncode == 130
    assert record.interrupted
    assert 0 < record.tokens["generated"] < 3000
    assert record.timings.decode_ms_per_token is None or record.timings.decode_ms_per_token > 0
    assert first + out
    assert err.splitlines()[-1] == "kvfoot: interrupted"
    assert "Traceback" not in err


@pytest.mark.parametrize("question", ["--question", "--question-after"])
def test_while_reading(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    from kvfoot.cli.console import Watch

    def stop(self: Watch, event: Any) -> None:
        if event.done >= 200:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "__call__", stop)
    path = tmp_path / "out.json"
    said = run(question, "Why?", "--record", path, chunk="100")
    record = RunRecord.from_json(path.read_text())
    assert said.code == 130
    assert said.out == ""
    assert record.interrupted
    assert record.tokens["generated"] == 0
    assert record.sequences[0].kept == [[200, 200], [200, 200]]


def test_before_anything_was_done(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvfoot.cli import console

    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "load", stop)
    said = run("--record", tmp_path / "out.json")
    assert said.code == 130
    assert said.line == "interrupted"
    assert not (tmp_path / "out.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_standard_output_is_full(model: Path, document: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = start("run", "--model", model, "--prompt-file", document, "--dtype", "float32", out=full)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "kvfoot: No space left on device"
    assert "Traceback" not in err


def test_the_reader_has_gone(model: Path, document: Path) -> None:
    process = start("run", "--model", model, "--prompt-file", document, "--dtype", "float32", "--max-new-tokens", 500)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 1
    assert "Traceback" not in err
    assert "Exception ignored" not in err
