"""benchmarks/gpu.py on a CPU: a record per case, resumed, failures kept; what peers_gpu.py says of its packages."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kvfoot.bench import measure
from kvfoot.bench.record import BenchRecord

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setitem(measure.COPY, "cpu", 1 << 22)
    monkeypatch.setitem(measure.PRODUCT, "cpu", 64)
    import gpu

    yield gpu
    sys.modules.pop("gpu")


def call(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--shape", "tiny", "--out", str(out), *more])
    code: int = gpu.main()
    return code


def test_cases_are_saved_one_by_one_and_resumed(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "heads30-128k,keep12-128k,eviction-128k,refreshkv-128k"
    plain = gpu.eviction

    def failing(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "eviction", failing)
    assert call(gpu, monkeypatch, tmp_path, "--only", names) == 1
    saved = {path.name for path in tmp_path.iterdir()}
    assert saved == {
        "heads30-128k.json",
        "keep12-128k.json",
        "eviction-128k.error.txt",
        "refreshkv-128k.json",
    }
    assert "RuntimeError: out of memory" in (tmp_path / "eviction-128k.error.txt").read_text()
    record = BenchRecord.from_json((tmp_path / "keep12-128k.json").read_text())
    assert record.command == "python benchmarks/gpu.py --only keep12-128k --shape tiny"
    (row,) = record.figures["sides"].values()
    prompt = 128 * 16 - 2 * 13
    assert row["entries_per_row"] == 7 * round(0.12 * 256) + round(0.12 * (prompt - 7 * 256))
    capsys.readouterr()
    assert call(gpu, monkeypatch, tmp_path, "--only", names) == 0
    assert "--" not in capsys.readouterr().out.split("|")[0], "nothing is left to do"
    monkeypatch.setattr(gpu, "eviction", plain)
    assert call(gpu, monkeypatch, tmp_path, "--only", "eviction-128k", "--again") == 0
    assert not (tmp_path / "eviction-128k.error.txt").exists()
    table = capsys.readouterr().out
    assert "| eviction-128k | with / without |" in table
    assert call(gpu, monkeypatch, tmp_path, "--table") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1 + 1 + 3 + 1  # full, refreshkv and transformers in one case
    roles = next(line for line in lines if line.startswith("| heads30-128k"))
    row = BenchRecord.from_json((tmp_path / "heads30-128k.json").read_text()).figures["sides"].popitem()[1]
    assert roles.endswith(
        f"| {row['ms']:.3f} | {row['roofline_ms']:.3f} | {row['ratio']:.2f} | {row['tokens_per_second']:.1f} |"
    )


def test_no_case_is_begun_that_would_not_end(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(gpu, monkeypatch, tmp_path, "--minutes", "0.1") == 0
    said = capsys.readouterr().out
    names = [case.name for case in gpu.cases(gpu.Scale())]
    assert re.findall(r"^-- (\S+): not begun", said, re.M) == names
    assert not list(tmp_path.iterdir())
    assert len(set(names)) == len(names)


def test_the_cases_fit_llama(gpu: ModuleType) -> None:
    """Every plan suits the shape, and every side an 80 GB card beside its weights."""
    from kvfoot.bench import shapes
    from kvfoot.bench.prefill import width_of

    g, free = shapes.geometry(gpu.LLAMA), (78 << 30) - 2 * 8_030_261_248
    for case in gpu.cases(gpu.Scale()):
        if case.bench == "decode":
            needs = case.what.needs(g, 2, 16)
        elif case.bench == "prefill":
            needs = case.what.needs(g, 2, 16, width_of(shapes.config_of(gpu.LLAMA)))
        elif case.bench == "capacity":
            counts = case.what.batches(g, 2, 16, int(0.9 * free))
            assert 7 <= counts["snapkv keep=0.12 window=64 chunk"] / counts["full"] <= 10
            continue
        else:
            plan = case.what.variant.plan(g, case.what.context)
            assert plan.passes[len(plan.passes) // 2].cut is not None
            continue
        assert max(needs.values()) < free, (case.name, needs)
    every = gpu.cases(gpu.Scale())
    for case in (case for case in every if case.bench == "decode" and case.name != "refreshkv-32k-b8"):
        assert sum(case.what.needs(g, 2, 16).values()) < free, f"{case.name}: sides are measured side by side"
    assert sum(case.seconds for case in every) < 520, "all of them in one call of nine minutes"


def test_the_packages_of_peers_gpu_are_those_of_make_peers() -> None:
    pinned = dict(
        line.split("==")
        for line in (ROOT / "benchmarks/peers/constraints.txt").read_text().splitlines()
        if "==" in line
    )
    said = re.findall(r"\b([a-z]+)==([\d.]+\d)", (ROOT / "benchmarks/peers_gpu.py").read_text())
    assert {"kvpress", "transformers", "tokenizers", "datasets", "fire"} <= {name for name, _ in said}
    for name, version in said:
        assert pinned[name] == version
