"""The pool's size as bytes or as a fraction of what is free, and runs that are refused before they begin."""

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import tiny
from kvfoot.cache import memory
from kvfoot.cli.inputs import pool_size
from kvfoot.core.budget import Budget
from kvfoot.core.errors import PoolExhausted, UsageError
from kvfoot.core.hooks import Plan
from kvfoot.core.registry import method
from kvfoot.engine import engine as engine_module
from kvfoot.engine.admission import check_fits, pool_bytes, workspace
from kvfoot.engine.engine import Engine

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, None),
        ("0.9", 0.9),
        ("1.0", 1.0),
        ("90%", 0.9),
        ("12GiB", 12 * 2**30),
        ("0.5GiB", 2**29),
        ("512MB", 512 * 10**6),
        ("4096", 4096),
        ("1", 1),
    ],
)
def test_what_may_be_written(text: str | None, size: int | float | None) -> None:
    found = pool_size(text)
    assert found == size
    assert type(found) is type(size)


@pytest.mark.parametrize("size", [0.0, -0.1, 1.1, 0, -5])
def test_sizes_that_are_none(size: float) -> None:
    with pytest.raises(UsageError, match="kv_memory="):
        Engine(tiny.llama(), kv_memory=size)


def test_a_fraction_is_of_what_is_free_beside_the_workspace() -> None:
    assert pool_bytes(0.9, 1000, 100) == 810
    assert pool_bytes(1.0, 1000, 0) == 1000
    assert pool_bytes(77, 1000, 100) == 77
    assert pool_bytes(None, 1000, 100) is None
    with pytest.raises(PoolExhausted, match="workspace"):
        pool_bytes(0.9, 1000, 1000)


def plan(prompt: int, chunk: int | None) -> Plan:
    return tiny.Strict(tiny.llama()).plan(method("full"), Budget(), prompt, chunk, 4)


def test_the_workspace_grows_with_the_chunk_and_the_prompt() -> None:
    config, geometry = tiny.llama().config, tiny.Strict(tiny.llama()).geometry
    of = lambda *plans: workspace(config, geometry, plans, 4)  # noqa: E731
    assert of(plan(400, 50)) < of(plan(400, 100)) < of(plan(400, None))
    assert of(plan(200, 50)) < of(plan(400, 50)) < of(plan(400, 50), plan(400, 50))


def test_a_fraction_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is what it says, to a page; a run that does not fit is refused before it begins."""
    engine = Engine(tiny.llama(), kv_memory=0.5, page_size=4)
    page = 4 * 2 * 8 * 4
    room = workspace(tiny.llama().config, engine.geometry, [plan(60, None)], 4)
    monkeypatch.setattr(engine_module, "free", lambda device: room + 2 * 80 * page + 1)
    runner = engine.runner([plan(60, None)], 4)
    assert runner.cache.pool.pages == 80
    assert engine.generate([tiny.tokens(60)], chunk=None, max_new_tokens=4)
    with pytest.raises(PoolExhausted, match="needs 92 more pages and 80 of 80 are free"):
        engine.generate([tiny.tokens(60)], chunk=None, max_new_tokens=30)


def test_real_memory_is_what_a_fraction_is_taken_of() -> None:
    before = psutil.virtual_memory().total
    pool = Engine(tiny.llama(), kv_memory=0.25).runner([plan(60, None)], 4).cache.pool
    assert 0 < pool.pages * pool.page_bytes < before // 4


def test_an_accelerator_is_asked_before_the_pool_is_allocated() -> None:
    check_fits(10, 100, 500, 1500)
    with pytest.raises(PoolExhausted, match="16 pages") as refused:
        check_fits(16, 2**28, 2**29, 2**32)
    assert "4.00 GiB" in str(refused.value)
    assert "0.50 GiB beside it" in str(refused.value)
    assert refused.value.exit_code == 3


def test_a_container_s_limit_holds(tmp_path: Path) -> None:
    host = memory.free(CPU, tmp_path / "none")
    files: dict[str, Any] = {
        "memory.max": 10_000,
        "memory.current": 7_000,
        "memory.stat": "anon 5\ninactive_file 2500\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(f"{content}\n".replace("\n\n", "\n"))
    assert memory.free(CPU, tmp_path) == 10_000 - 7_000 + 2_500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free(CPU, tmp_path) == pytest.approx(host, rel=0.2)
