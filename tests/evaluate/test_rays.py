"""A sweep as Ray tasks: the same content as without, and a killed worker costs its cell's time only."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kvfoot.evaluate.drive import Queue, run
from kvfoot.evaluate.export import read
from kvfoot.evaluate.sweep import Sweep

pytest.importorskip("ray", reason="the extra ray is not installed: pip install 'kvfoot[ray]'")


def sweep(folder: Path) -> Sweep:
    from tinyeval import save

    path = folder / "mine.jsonl"
    prompts = [f"Entry {i}: " + "words that fill " * 8 for i in range(6)]
    rows = [{"prompt": prompt, "answers": ["x"], "max_new_tokens": 3} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    methods = ("full", "snapkv:window=8", "h2o", "streaming")
    knobs = {"keep": (0.5, 0.2)}
    where: dict[str, Any] = {"chunk": 64, "batch": 2, "dtype": "float32", "device": "cpu"}
    return Sweep(str(save(folder / "model")), (str(path),), methods, knobs, samples=6, **where)


def content(folder: Path) -> list[tuple[Any, ...]]:
    return [(r.cell.key, r.index, r.answer, r.score, r.nll, r.timeline, r.record.footprint) for r in read(folder)]


def test_a_killed_worker_costs_its_cells_time(tmp_path: Path) -> None:
    from kvfoot.evaluate.rays import run_on_ray

    one = sweep(tmp_path)
    run(one, tmp_path / "plain")
    killed: list[int] = []

    def tell(queue: Queue) -> None:
        """After the first results: kill -9 of one of the processes that run our actor."""
        import psutil

        if not killed and queue.store.progress(queue.numbers, 6):
            mine = psutil.Process().children(recursive=True)
            worker = next(p for p in mine if "ray::Actor" in " ".join(p.cmdline()))
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    run_on_ray(one, tmp_path / "ray", "local", 2, tell)
    assert len(killed) == 1
    assert len(read(tmp_path / "ray")) == 7 * 6
    assert content(tmp_path / "ray") == content(tmp_path / "plain")


def test_errors_come_through(tmp_path: Path) -> None:
    from dataclasses import replace

    from kvfoot.core.errors import UsageError
    from kvfoot.evaluate.rays import run_on_ray

    with pytest.raises(UsageError, match="positions"):
        run_on_ray(replace(sweep(tmp_path), lengths=(100_000,)), tmp_path / "ray", "local", 1, lambda _: None)
    assert not (tmp_path / "ray").exists()
