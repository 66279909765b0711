"""docs/kvpress.md says what the table of aligned options and the committed record say, and the record bears it."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kvfoot.core.registry import method

ROOT = Path(__file__).parents[2]
METHODS = {"snapkv", "pyramidkv", "tova", "keynorm", "streaming", "adakv"}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """benchmarks/peers' aligned and tables: they import neither torch nor kvpress."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "peers"))
    import aligned
    import tables

    yield aligned, tables
    for module in (aligned, tables):
        sys.modules.pop(module.__name__)


WHOLE = {"transformers", "plain again", "kvfoot full", "kvpress AdaKVPress"}
"""What frees nothing."""


@pytest.fixture
def record() -> Any:
    return json.loads((ROOT / "results" / "peers.json").read_text(encoding="utf-8"))


def test_the_page_is_the_records(modules: tuple[ModuleType, ModuleType], record: Any) -> None:
    page = (ROOT / "docs" / "kvpress.md").read_text(encoding="utf-8")
    parts = modules[1].tables(record)
    assert sorted(parts) == sorted(re.findall(r"<!-- (\w[\w ]*) -->", page))
    assert modules[1].insert(page, parts) == page, "run: make peers"
    assert f"{record['entries']['mask_outlives']:.2f} times" in page
    with pytest.raises(KeyError, match="0 places marked cost"):
        modules[1].insert("no markers", {"cost": "x"})


def test_aligned_options_are_our_methods_own(modules: tuple[ModuleType, ModuleType]) -> None:
    aligned = modules[0]
    assert {pair.method for pair in aligned.ALIGNED} == METHODS
    for pair in (*aligned.ALIGNED, *aligned.APART):
        assert set(pair.options) <= set(method(pair.method, pair.options).options())
    rows = aligned.options_table().splitlines()[2:]
    ours, theirs = "window 64, kernel 5, pool avg, group mean, sink 0", "window_size 64, kernel_size 5"
    assert rows[0] == f"| `snapkv` | {ours} | `SnapKVPress` | {theirs} |"
    assert len(rows) == len(METHODS)


def test_pyramids_meet_at_both_ends(modules: tuple[ModuleType, ModuleType]) -> None:
    """kvpress' line from 2M - M/beta to M/beta, and what our method plans for the same options."""
    from kvfoot.core.budget import Budget
    from kvfoot.core.geometry import Geometry

    aligned = modules[0]
    pair = next(p for p in aligned.ALIGNED if p.method == "pyramidkv")
    chosen = method(pair.method, pair.options)
    geometry = Geometry(layers=4, kv_heads=1, group=1, head_dim=8, positions=2048)
    keep = aligned.Fraction(aligned.KEPT, aligned.PROMPT)
    cut = chosen.prepare(geometry, aligned.PROMPT, None, Budget.of(keep)).passes[0].cut
    assert cut is not None
    low = aligned.KEPT / pair.press_options["beta"]
    high = 2 * aligned.KEPT - low
    assert cut.counts[:, 0].tolist() == [high - layer * (high - low) / 3 for layer in range(4)] == [484, 332, 180, 28]


def test_the_same_entries(record: Any) -> None:
    """At least 99 % of what is kept, and of the places too, once TOVA's newest entry is put in."""
    part = record["entries"]
    assert set(part["aligned"]) == METHODS
    for name, row in part["aligned"].items():
        places = part["apart"]["tova, newest put in"]["ranks"] if name == "tova" else row["ranks"]
        assert min(row["entries"], places) >= 0.99, name
        assert row["kvfoot"] == row["kvpress"] > 10_000
    assert part["packages"]["kvpress"] == "0.5.5"
    assert part["packages"]["transformers"] == "5.2.0"


@pytest.mark.parametrize(("part", "methods"), [("cost", 6), ("cost random", 2)])
def test_the_bytes(record: Any, part: str, methods: int) -> None:
    """kvpress' AdaKV frees nothing, ours what it promises; all others half, to a page per row and 4 bytes per entry."""
    rows, dense = record[part]["rows"], record[part]["dense_bytes"]
    freed = {name: 1 - row["held_bytes"] / dense for name, row in rows.items()}
    assert all(freed.pop(name) == 0 for name in WHOLE)
    assert len(freed) == 2 * methods - 1 + 2  # two that evict by chunk
    assert 0.48 < min(freed.values()) <= max(freed.values()) < 0.505
    assert all(row["peak_bytes"] >= row["held_bytes"] for row in rows.values())
