"""What the docs say is true: the example of the footprint, the method, the fields of a record, the README's table."""

import json
import re
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kvfoot.cache.trace import Pass, Trace
from kvfoot.cli.methods import as_markdown
from kvfoot.core import registry
from kvfoot.core.budget import Budget
from kvfoot.core.geometry import Geometry
from kvfoot.core.records import RunRecord

ROOT = Path(__file__).parents[2]
GEOMETRY = Geometry(layers=1, kv_heads=1, group=1, head_dim=64, positions=100)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page(name), re.S)


def example(evict: str) -> Trace:
    """One row, 8 tokens in chunks of 4, half kept, 2 decode passes."""
    passes, later = Budget.of("0.5", evict=evict).resolve(8, 4, GEOMETRY, floor=0, observers=0, total=False)
    assert later is None
    trace, stored = Trace(GEOMETRY, 260, GEOMETRY.entry_bytes(2)), np.zeros((1, 1), np.int64)
    for p in passes:
        trace.passes.append(Pass(p.stop - p.start, p.start, stored))
        new = p.stop - p.start
        stored = stored + new if p.cut is None else p.cut.kept(stored, new)
    for seen in (8, 9):
        trace.passes.append(Pass(1, seen, stored))
        stored = stored + 1
    return trace


def test_the_example_of_the_footprint() -> None:
    chunk, post = example("chunk"), example("post")
    text = page("docs/footprint.md")
    rows = re.findall(r"^\| (?:chunk|token) \d \|(.*)\|$", text, re.M)
    assert len(rows) == len(chunk.passes)
    for row, p in zip(rows, chunk.passes, strict=True):
        n, b, s, pairs, dense, stored = (int(re.split(r"= ?", cell)[-1]) for cell in row.split("|"))
        assert (n, b, s) == (p.n, int(p.before[0, 0]), p.seen)
        assert pairs == n * (n + 1) // 2 + n * b
        assert dense == n * (n + 1) // 2 + n * s
        assert stored == b + n
    assert (chunk.kv(), chunk.dense(), chunk.peak(), chunk.dense_peak()) == (39, 55, 6, 10)
    assert (post.kv(), post.dense(), post.peak()) == (47, 55, 8)
    shown = chunk.footprint()
    for said in (
        f"`kv` = 39/55 = {shown.kv:.3f}, `peak` = 6/10 = {shown.peak:.3f}",
        f"`bytes` = 39/55 x 260/256 = {shown.bytes:.3f}",
        f"`kv` = 47/55 = {post.footprint().kv:.3f}, `peak` = 8/10 = {post.footprint().peak:.3f}",
    ):
        assert said in text
    assert shown.read == shown.kv


def test_the_method_of_the_docs(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = code("docs/methods.md")[0]
    assert 30 <= len(source.splitlines()) <= 45
    monkeypatch.setattr(registry, "_methods", dict(registry.methods()))
    module = ModuleType("fading_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "docs/methods.md", "exec"), module.__dict__)
    for evict in ("post", "chunk"):
        path = tmp_path / f"{evict}.json"
        said = run("--set", "half=32", "--evict", evict, "--record", path, method="fading", keep="0.3", chunk="100")
        assert said.code == 0, said.err
        record = RunRecord.from_json(path.read_text())
        share = sum(map(sum, record.kept)) / (4 * record.tokens["prompt"])
        assert share == pytest.approx(0.3, abs=0.01)
    assert "half" in run("--set", "half=0", method="fading", keep="0.3").line


def test_every_field_of_a_record_is_described(run: Any, tmp_path: Path) -> None:
    text = page("docs/record.md")
    assert run("--record", tmp_path / "out.json").code == 0
    data = json.loads((tmp_path / "out.json").read_text())
    groups = {name: [f"{name}.{x}" for x in data[name]] for name in ("footprint", "memory", "timings", "tokens")}
    names = [
        *(set(data) - set(groups)),
        *data["config"],
        *data["sequences"][0],
        *(x for g in groups.values() for x in g),
    ]
    for name in names:
        assert f"`{name}`" in text, f"{name} is not in docs/record.md"
    assert set(data) == {f.name for f in fields(RunRecord)}
    assert asdict(RunRecord.from_json((tmp_path / "out.json").read_text())) == data


def test_the_table_of_methods_is_current() -> None:
    assert as_markdown() in page("README.md"), "run: kvfoot methods --into README.md"


def test_pages_that_are_linked_exist() -> None:
    for name in (
        "README.md",
        "docs/footprint.md",
        "docs/methods.md",
        "docs/record.md",
        "docs/readers.md",
        "docs/bench.md",
    ):
        for target in re.findall(r"\]\(([^)#]+)\)", page(name)):
            if not target.startswith("http"):
                assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_the_drop_in_of_the_docs(model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    one = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.arange(5, 105)[None]
    found = {"model": one, "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
    (block,) = code("docs/dropin.md")
    exec(block, found)
    assert found["output"].shape == (1, 164)
    assert found["record"].kept == [[64, 64], [64, 64]], "a quarter would be 25, and the window is 64"


def test_the_sessions_of_the_docs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinycli import DOCUMENT

    monkeypatch.chdir(tmp_path)
    (block,) = code("docs/sessions.md")
    found = {"document": DOCUMENT}
    exec(block.replace('"smollm2"', f'"{model}", dtype="float32"'), found)
    session, later = found["session"], found["later"]
    assert later.talk.rows.seen - session.talk.rows.seen == 1 + len("\n\nWhy?") + 127
    assert session.turn("Why?").tokens == later.talk.generated
