"""Tasks by name, group or file; and a sample of the published ones all the way to its score."""

from pathlib import Path

import pytest
from taskdata import write

from kvfoot.core.errors import UsageError
from kvfoot.core.results import SampleResult
from kvfoot.engine.engine import Engine
from kvfoot.evaluate.catalog import find
from kvfoot.evaluate.sweep import Sweep
from kvfoot.evaluate.worker import Job, Worker
from tiny import make
from tinyeval import tokenizer


def test_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "x", "answers": ["y"], "metric": "f1"}\n')
    folder = write(tmp_path / "data")
    found = find(["passkey", "ruler", "chain-of-key", str(path)], str(folder))
    assert [task.name for task in found][:2] == ["passkey", "niah_single_1"]
    assert len(found) == 1 + 11 + 1 + 1
    assert found[-1].sample(0, 0, 0, len).score("y y") == pytest.approx(2 / 3)  # type: ignore[arg-type,misc]
    with pytest.raises(UsageError, match="did you mean niah_single_1"):
        find(["niah_singl_1"])
    with pytest.raises(UsageError, match=r"did you mean ruler"):
        find(["rulr"])
    with pytest.raises(UsageError, match="given twice"):
        find(["niah_single_1", "niah"], str(folder))


def test_published_tasks_go_all_the_way(tmp_path: Path) -> None:
    engine = Engine(make("llama", positions=4096), tokenizer(), page_size=16)
    names = ("niah_single_1", "vt", "json_kv_numbers", "perplexity")
    folder = str(write(tmp_path / "data"))
    for task in find(names, folder):
        sweep = Sweep("m", (task.name,), ("full", "streaming"), {"keep": (0.5,)}, (2400,), samples=1, data=folder)
        pairs = sweep.cells([task], "", "float32")
        cells, variants = [c for c, _ in pairs], [v for _, v in pairs]
        results: dict[int, SampleResult] = {}
        Worker(engine, sweep).run(Job(task, 2400, cells, variants, {(0, 0), (1, 0)}), results.__setitem__)
        full, small = results[0], results[1]
        assert full.record.footprint.kv == 1 > small.record.footprint.kv
        assert full.record.sequences[0].prompt + full.record.tokens["generated"] <= 2400
        assert 0 <= full.score <= 1
        assert full.nll is not None
        assert small.nll is not None
        assert abs(full.nll - small.nll) > 1e-4
        assert full.stepped == (task.metric == "recall")
