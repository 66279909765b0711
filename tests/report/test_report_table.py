"""Tables from records."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from kvfoot.core.records import Footprint, Memory, RunRecord, SequenceRecord, Timings
from kvfoot.report.bars import bars
from kvfoot.report.table import comparison, size, summary, title


def record(method: str = "snapkv", **changes: Any) -> RunRecord:
    config = {"model": "smollm2", "method": method, "keep": 0.25, "budget": None, "evict": "post", "dtype": "bfloat16"}
    footprint = Footprint(0.987, 0.991, 0.988, 1.005)
    made = RunRecord(
        footprint=footprint,
        memory=Memory(22_118_400, 85_900_000, 85_670_000),
        timings=Timings(3.5, 3.6, 41.25),
        tokens={"prompt": 3713, "generated": 20},
        config=config | changes.pop("config", {}),
        revision="r",
        packages={},
        device={"type": "cpu", "name": "a processor", "threads": 2},
        seed=0,
        sequences=[SequenceRecord(3713, 20, footprint, [[928]])],
    )
    return replace(made, **changes)


def text(renderable: Any, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (22_118_400, "21.1 MiB"),
        (1023 * 2**20, "1023 MiB"),
        (2**40, "1024 GiB"),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown


def test_titles() -> None:
    assert title(record()) == "snapkv keep=0.25 post"
    assert title(record("full", config={"keep": None, "evict": None})) == "full"
    assert title(record("h2o", config={"keep": None, "budget": 1024, "evict": "chunk"})) == "h2o budget=1024 chunk"


def test_the_cost_of_a_run_fits_a_terminal() -> None:
    shown = text(summary(record()))
    for word in (
        "0.987",
        "peak 0.991",
        "read 0.988",
        "bytes 1.005",
        "held 21.1 MiB",
        "peak 81.9 MiB",
        "dense 81.7 MiB",
    ):
        assert word in shown
    for word in ("prefill 3.50 s", "first token 3.60 s", "per token 41.2 ms", "prompt 3,713", "generated 20"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "interrupted" not in shown
    assert "host memory" not in shown
    assert "beside it" not in shown
    memory = Memory(22_118_400, 85_900_000, 85_670_000, 22_118_400, 85_900_000, 3 << 20)
    lines = [" ".join(line.split()) for line in text(summary(record(memory=memory))).splitlines()]
    assert "host memory held 21.1 MiB peak 81.9 MiB" in lines
    assert "beside it 3.0 MiB" in lines
    assert "interrupted" in text(summary(record(interrupted=True, timings=Timings(1, 1, None))))


def test_runs_side_by_side() -> None:
    shown = text(comparison([record("full"), record()], ["right", "wrong"]), width=100)
    rows = [line for line in shown.splitlines() if "MiB" in line]
    assert rows[0].split()[0] == "full"
    assert rows[0].rstrip().endswith("right")
    assert rows[1].rstrip().endswith("wrong")
    assert "41.2 ms" in rows[1]


def test_the_picture_says_what_the_records_say() -> None:
    from xml.etree import ElementTree

    runs = [record("full", config={"keep": None}, memory=Memory(86_000_000, 86_000_000, 85_670_000)), record()]
    tree = ElementTree.fromstring(bars(runs, ["right", "<wrong>"]))
    texts = [t.text or "" for t in tree.iter("{http://www.w3.org/2000/svg}text")]
    for word in ("21.1 MiB", "82.0 MiB", "0.987", "answer right", "answer <wrong>", "snapkv keep=0.25 post"):
        assert word in texts
    assert any("3,713 tokens" in t for t in texts)
    wide = [float(r.get("width", 0)) for r in tree.iter("{http://www.w3.org/2000/svg}rect")]
    rail = wide[1]
    assert wide[2] == rail
    assert wide[6] == pytest.approx(rail * 22_118_400 / 85_670_000, abs=0.1)
    assert max(wide[1:]) <= rail


def test_reports_need_no_torch() -> None:
    code = "import sys, json, kvfoot.report.table, kvfoot.report.bars; print(json.dumps('torch' in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) is False
