"""`kvfoot eval` and `kvfoot critical`: resumed, shared, killed, deterministic, and what they refuse."""

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tinycli import Said, save_tiny

from kvfoot.core.records import Footprint, Memory, RunRecord, Timings
from kvfoot.core.results import Cell, SampleResult
from kvfoot.evaluate.export import read
from kvfoot.evaluate.store import FILE, LEASE, Store

METHODS = "full,snapkv:window=8,h2o,streaming"
CELLS = 1 + 3 * 2
SAMPLES = 4


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Entry {i}: " + "some words that fill the room, " * 5, "answers": [f"{i}"], "max_new_tokens": 3}
        for i in range(SAMPLES)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(model: Path, questions: Path, out: Path, *more: object, **instead: object) -> list[str]:
    base: dict[str, object] = {"model": model, "tasks": questions, "methods": METHODS, "knob": "keep=0.5,0.2"}
    base |= {"samples": SAMPLES, "chunk": 64, "dtype": "float32", "batch": 2, "out": out} | instead
    options = [str(x) for name, value in base.items() for x in (f"--{name.replace('_', '-')}", value)]
    return ["eval", *options, *map(str, more)]


def content(out: Path) -> list[tuple[Any, ...]]:
    """All that is to be the same whoever ran it: everything but timings."""
    return [
        (r.cell.key, r.index, r.prompt, r.answer, r.score, r.nll, r.stepped, r.timeline, r.record.footprint, r.figures)
        for r in read(out)
    ]


def test_a_sweep_and_its_critical_footprint(kvfoot: Any, model: Path, questions: Path, tmp_path: Path) -> None:
    out, export = tmp_path / "out", tmp_path / "out.json.gz"
    said: Said = kvfoot(*command(model, questions, out, "--export", export))
    assert said.code == 0, said.err
    results = read(out)
    assert len(results) == CELLS * SAMPLES
    assert {r.record.footprint.kv for r in results if r.cell.is_full} == {1.0}
    assert "mine full: " in said.err
    again = kvfoot(*command(model, questions, out))
    assert again.code == 0
    assert read(out) == results, "timings too: nothing was run twice"
    assert [(r.score, r.record, r.cell) for r in read(export)] == [(r.score, r.record, r.cell) for r in results]
    assert export.stat().st_size < (out / FILE).stat().st_size / 4
    assert export.stat().st_mode == questions.stat().st_mode, "as any file of the user's"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.jsonl", "out", "out.json.gz"]
    more = kvfoot(*command(model, questions, out, knob="keep=0.8"))
    assert more.code == 0
    assert len(read(out)) == (CELLS + 3) * SAMPLES


CHILD = """
import os, sys
import torch
from kvfoot.cli.app import main
from kvfoot.evaluate.store import Store
torch.set_num_threads(1)
log, put = sys.argv[1], Store.put
def logged(self, number, result):
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {number} {result.index}\\n")
    put(self, number, result)
Store.put = logged
os.write(1, b"ready")
sys.stdin.readline()
sys.exit(main(sys.argv[2:]))
"""


def start(arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """The command line in a process of its own that has everything imported and waits for `go`; samples are logged.

    Not forked: the threads of this process may hold locks.
    """
    words = [sys.executable, "-c", CHILD, str(log), *map(str, arguments)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.read(5) == b"ready"
    return process


def go(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def test_two_processes_share_the_work(kvfoot: Any, model: Path, questions: Path, tmp_path: Path) -> None:
    """No sample twice, and the same content as one process alone; nor do workers of one command change it."""
    alone, shared, log = tmp_path / "alone", tmp_path / "shared", tmp_path / "log"
    assert kvfoot(*command(model, questions, alone, batch=1)).code == 0
    both = [start(command(model, questions, shared, batch=1), log) for _ in range(2)]
    for process in both:
        go(process)
    for process in both:
        process.communicate(timeout=120)
    assert [p.returncode for p in both] == [0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == len({tuple(line[1:]) for line in lines}) == CELLS * SAMPLES
    assert len({line[0] for line in lines}) == 2, "both have worked"
    assert content(alone) == content(shared)


def test_workers_of_one_command(kvfoot: Any, model: Path, questions: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    assert kvfoot(*command(model, questions, a)).code == 0
    assert kvfoot(*command(model, questions, b, "--workers", 2)).code == 0
    assert content(a) == content(b)


def test_kill_nine_loses_nothing(model: Path, questions: Path, tmp_path: Path, kvfoot: Any) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert kvfoot(*command(model, questions, whole)).code == 0
    process = start(command(model, questions, out), tmp_path / "log")
    go(process)
    deadline, found = time.monotonic() + 120, 0
    while found < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(out / FILE)) as db:
            found = db.execute("select count(*) from samples").fetchone()[0]
    process.kill()
    process.communicate()
    before = {(r.cell.key, r.index): r for r in read(out)}
    assert 3 <= len(before) < CELLS * SAMPLES, "killed in the middle"
    began = time.monotonic()
    assert kvfoot(*command(model, questions, out)).code == 0
    assert time.monotonic() - began < LEASE, "the dead process's leases ended with it"
    after = {(r.cell.key, r.index): r for r in read(out)}
    assert {key: after[key] for key in before} == before, "what was there has not been run again"
    assert [x[:5] for x in content(out)] == [x[:5] for x in content(whole)]


def measured(curve: dict[float, float]) -> list[SampleResult]:
    """footprint -> score of one sample of snapkv, beside a full one that scores 1."""
    cell = Cell("m", "", "keys", "recall", "exact", 1024, "full", chunk=512)
    cells = {1.0: cell} | {kv: replace(cell, method="snapkv", knob="keep", value=kv, evict="chunk") for kv in curve}

    def record(kv: float) -> RunRecord:
        tokens = {"prompt": 1000, "generated": 11}
        return RunRecord(Footprint(kv, kv, kv, kv), Memory(0, 0, 0), Timings(0, 0, None), tokens, {}, "", {}, {}, 0)

    return [
        SampleResult(cells[kv], 0, "p", "a", "r", score, None, False, record(kv))
        for kv, score in ({1.0: 1.0} | curve).items()
    ]


def test_critical_on_a_folder(kvfoot: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    for r in measured({0.534: 0.927, 0.466: 0.876, 0.3: 0.5}):
        store.put(store.numbers([r.cell])[0], r)
    store.close()
    said = kvfoot("critical", tmp_path / "out")
    assert said.code == 0, said.err
    assert "snapkv" in said.out
    assert "49.8 %" in said.out
    found = json.loads(kvfoot("critical", tmp_path / "out", "--json", "--fraction", 0.5).out)
    assert found[0]["last"]["footprint"] == pytest.approx(0.3)
    assert "no results are left" in kvfoot("critical", tmp_path / "out", "--chunk", 7).line
    assert "outside (0, 1]" in kvfoot("critical", tmp_path / "out", "--fraction", 1.5).line
    assert f"no {FILE} there" in kvfoot("critical", tmp_path).line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": "passkeys"}, ["unknown task 'passkeys'", "did you mean passkey"]),
        ({"methods": "full,snapvk"}, ["unknown method 'snapvk'", "did you mean snapkv"]),
        ({"knob": "kep=0.5"}, ["none of full, h2o, snapkv, streaming has a knob 'kep'", "did you mean keep"]),
        ({"knob": "windw=4"}, ["knob 'windw'", "known: budget, keep"]),
        ({"methods": "snapkv", "knob": "sink=4"}, ["none of snapkv has a knob 'sink'"]),
        ({"knob": "keep=much"}, ["values are numbers"]),
        ({"knob": "keep"}, ["write a name and values"]),
        ({"knob": "keep=0.5,1.5"}, ["keep=1.5", "(0, 1]"]),
        ({"knob": "keep=0.5,0.5"}, ["given twice"]),
        ({"knob": "budget=0.5"}, ["whole numbers"]),
        ({"methods": "full,snapkv:windw=8"}, ["no option 'windw'", "did you mean window"]),
        ({"methods": "full,snapkv:window"}, ["write name:option=value"]),
        ({"set": "snapkv=3"}, ["write method.option=value"]),
        ({"set": "tova.window=3"}, ["tova is not among --methods"]),
        ({"lengths": "9000"}, ["--lengths 9000", "4096 positions"]),
        ({"lengths": "long"}, ["--lengths long", "4K"]),
        ({"samples": "5"}, ["mine has 4 samples", "too many"]),
        ({"samples": "0"}, ["--samples 0"]),
        ({"evict": "later"}, ["evict='later'"]),
        ({"question": "between"}, ["--question between"]),
        ({"workers": "0"}, ["--workers 0"]),
        ({"batch": "0"}, ["--batch 0"]),
        ({"tasks": "nowhere.jsonl"}, ["nowhere.jsonl", "No such file"]),
        ({"tasks": "nowhere.py"}, ["nowhere.py", "no such file"]),
        ({"tasks": "passkey"}, ["--lengths", "1K,4K"]),
        ({"ray": "local"}, ["pip install 'kvfoot[ray]'"]),
        ({"export": "x.json"}, ["--export x.json", ".json.gz"]),
    ],
)
def test_what_is_refused(
    kvfoot: Any,
    model: Path,
    questions: Path,
    tmp_path: Path,
    change: dict[str, str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    if "ray" in change:
        monkeypatch.setitem(sys.modules, "ray", None)
    said = kvfoot(*command(model, questions, tmp_path / "out", **change))
    assert (said.code, said.out) == (2, "")
    for word in words:
        assert word in said.line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "x", "answers": ["y"]', ["line 2", "not JSON", "column"]),
        ('{"answers": ["y"]}', ["line 2", "prompt"]),
        ('{"prompt": " ", "answers": ["y"]}', ["line 2", "not empty"]),
        ('{"prompt": "x"}', ["line 2", "answers"]),
        ('{"prompt": "x", "answers": [3]}', ["line 2", "answers"]),
        ('{"prompt": "x", "answers": "y", "promt": 1}', ["line 2", "unknown field 'promt'"]),
        ('{"prompt": "x", "answers": "y", "metric": "rogue"}', ["unknown metric 'rogue'", "did you mean rouge"]),
        ('{"prompt": "x", "answers": "y", "metric": ["rouge"]}', ["line 2", "is not a text"]),
        ('{"prompt": "x\u2028", "answers": "y", "question": 3}', ["line 2", "question=3"]),
        ('{"prompt": "x", "answers": "y", "max_new_tokens": 0}', ["line 2", "max_new_tokens=0"]),
    ],
)
def test_a_bad_line(kvfoot: Any, tmp_path: Path, model: Path, line: str, words: list[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "fine", "answers": "y"}\n' + line + "\n")
    said = kvfoot(*command(model, path, tmp_path / "out"))
    assert (said.code, said.out) == (2, "")
    for word in words:
        assert word in said.line
    assert not (tmp_path / "out").exists()


def test_a_users_own_file(kvfoot: Any, tmp_path: Path, model: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from kvfoot.evaluate.protocol import Example\n"
        "class Count:\n"
        "    name, category, metric, chat = 'count', 'own', 'exact', None\n"
        "    def sample(self, index, length, seed, count):\n"
        "        return Example(document='1 2 3 ' * 20, answers=('1',), figures={'depth': 0.5})\n"
        "task = Count()\n"
    )
    said = kvfoot(*command(model, path, tmp_path / "out", samples=2, lengths="128"))
    assert said.code == 0, said.err
    results = read(tmp_path / "out")
    assert {(r.cell.task, r.cell.length, r.figures["depth"]) for r in results} == {("count", 128, 0.5)}
    path.write_text("task = 3\n")
    assert "lacks name, category" in kvfoot(*command(model, path, tmp_path / "out2")).line
    path.write_text("task = (\n")
    assert "line 1" in kvfoot(*command(model, path, tmp_path / "out2")).line


def test_databases_of_others(kvfoot: Any, model: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    store = Store(out)
    store.close()
    with sqlite3.connect(out / FILE) as db:
        db.execute("update meta set value = '2'")
    db.close()
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for said in (kvfoot(*command(model, questions, out)), kvfoot("critical", out)):
        assert said.code == 2
        assert "schema 2" in said.line
        assert "newer kvfoot" in said.line
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    (out / FILE).write_text("no database at all, but long enough to be looked at" * 100)
    said = kvfoot(*command(model, questions, out))
    assert (said.code, "no results file" in said.line) == (2, True)
    (tmp_path / "file").write_text("")
    assert "is a file" in kvfoot(*command(model, questions, tmp_path / "file")).line
    assert "there is no folder" in kvfoot(*command(model, questions, tmp_path / "no" / "out")).line


def test_another_version_is_writing(kvfoot: Any, model: Path, questions: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    import socket

    import psutil

    me = psutil.Process()
    with store._write() as db:
        row = ("x", socket.gethostname(), me.pid, me.create_time(), "0.0.9", time.time())
        db.execute("insert into owners values (?, ?, ?, ?, ?, ?)", row)
    said = kvfoot(*command(model, questions, tmp_path / "out"))
    assert said.code == 2
    assert "kvfoot 0.0.9 is writing it now" in said.line
    with store._write() as db:
        assert db.execute("select count(*) from samples").fetchone()[0] == 0
        db.execute("update owners set pid = 999999999")
    assert kvfoot(*command(model, questions, tmp_path / "out")).code == 0, "that process is gone"
    store.close()


def test_positions(kvfoot: Any, questions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = save_tiny(tmp_path / "small", positions=100)
    capfd.readouterr()
    said = kvfoot(*command(small, questions, tmp_path / "out"))
    assert said.code == 2
    assert "100 positions" in said.line
    assert not (tmp_path / "out").exists()


def test_the_pools_size_is_the_sweeps(kvfoot: Any, model: Path, questions: Path, tmp_path: Path) -> None:
    said = kvfoot(*command(model, questions, tmp_path / "small", kv_memory="16KiB"))
    assert said.code == 3
    assert "raise --kv-memory" in said.line
    assert kvfoot(*command(model, questions, tmp_path / "out", methods="full", kv_memory="0.5")).code == 0
    assert kvfoot(*command(model, questions, tmp_path / "none", kv_memory="1.5")).code == 2
