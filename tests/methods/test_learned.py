"""wgkv and locret with weights from a file: laws, limits, budgets, what is refused."""

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.learned import Learned
from kvfoot.core.registry import method as find_method
from kvfoot.methods.learn.scored import drawn
from laws.test_laws_2_3_11 import check_run
from lawtable import MODES, NEW, PROMPT

SHAPE = (2, 2, 3, 8)
"""Of the tiny Llama."""


def learned(name: str, geometry: Geometry, seed: int = 7, **more: Any) -> Learned:
    control: Any = find_method(name, {"seed": 0})
    of = control.shapes(geometry.kv_heads, geometry.group, geometry.head_dim)
    layers = tuple(drawn(of, seed + layer) for layer in range(geometry.layers))
    shape = (geometry.layers, geometry.kv_heads, geometry.group, geometry.head_dim)
    model = {"name": "tiny", "identity": geometry.identity}
    return Learned(name, layers, shape, {"window": 5} if name == "wgkv" else {}, model, **more)


def options_of(name: str, file: Path) -> dict[str, Any]:
    more: dict[str, Any] = {"window": 5} if name == "wgkv" else {"stabilizers": 7, "local": 3}
    return {"file": str(file), **more}


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("kind", list(tiny.MODELS))
@pytest.mark.parametrize("name", ["wgkv", "locret"])
def test_laws_2_3_and_11_with_a_file(name: str, kind: str, mode: dict[str, Any], tmp_path: Path) -> None:
    """Chunks of 7; the file goes its own way into the loops of tests/selections.py."""
    engine = tiny.Strict(tiny.MODELS[kind](), page_size=4)
    path = tmp_path / "scores.safetensors"
    learned(name, engine.geometry).save(path)
    options = options_of(name, path)
    run = tiny.run(engine, tiny.tokens(PROMPT, 6), name, options, chunk=7, new=NEW, **mode)
    check_run(name, options, mode, run)
    result = engine.generate(
        [tiny.tokens(PROMPT, 6)], method=name, options=options, chunk=7, max_new_tokens=NEW, **mode
    )
    assert result[0].tokens == run.generated


def test_a_budget_of_the_window_is_a_sliding_window() -> None:
    """g = 0 everywhere, as far as what is kept goes: nothing outlives the window."""
    engine = tiny.Strict(tiny.llama())
    run = tiny.run(engine, tiny.tokens(60), "wgkv", {"seed": 1, "window": 9}, budget=9, evict="chunk", chunk=16, new=5)
    for state in run.passes[1:]:
        assert all(sorted(row) == list(range(state.stop - 9, state.stop)) for layer in state.kept for row in layer)


def test_heads_of_a_layer_share_its_budget_by_their_gates() -> None:
    engine = tiny.Strict(tiny.llama())
    lengths = {}
    for alpha in (0.0, 0.5, 1.0):
        options = {"seed": 3, "window": 5, "alpha": alpha}
        run = tiny.run(engine, tiny.tokens(75), "wgkv", options, keep=0.4, evict="chunk", chunk=16, new=3)
        lengths[alpha] = [[len(row) for row in layer] for layer in run.passes[-1].kept]
        assert [sum(layer) for layer in lengths[alpha]] == [2 * (30 + 2)] * 2, "0.4 of 75, and two read tokens"
    spread = {alpha: max(abs(a - b) for a, b in rows) for alpha, rows in lengths.items()}
    assert spread[0.0] > spread[0.5] > spread[1.0] == 0


def test_keep_grows_with_what_has_been_read() -> None:
    """Tokens that leave the window are chosen among anew: after each chunk a row holds its share of all so far."""
    geometry = Geometry(*SHAPE, positions=512)
    plan = find_method("wgkv", {"seed": 1, "window": 5}).prepare(geometry, 75, 16, Budget.of("0.3", evict="chunk"))
    counts = [int(p.cut.counts[0, 0]) for p in plan.passes if p.cut is not None]
    assert counts == [max(5, round(Fraction("0.3") * n)) for n in (16, 32, 48, 64, 75)] == [5, 10, 14, 19, 22]
    assert all(p.cut is not None and p.cut.scope == "all" and p.cut.ragged for p in plan.passes)
    assert plan.later is None


def test_locret_never_holds_more_than_budget_and_chunk() -> None:
    engine = tiny.Strict(tiny.llama())
    options = {"seed": 1, "stabilizers": 10, "local": 4}
    result = engine.generate(
        [tiny.tokens(200)], method="locret", options=options, budget=30, evict="chunk", chunk=20, max_new_tokens=4
    )[0].record
    assert result.footprint.peak == (30 + 20) / (200 + 3)
    assert result.sequences[0].kept == [[30, 30], [30, 30]]


def test_stabilizers_stay_until_the_last_chunk() -> None:
    engine = tiny.Strict(tiny.llama())
    options = {"seed": 1, "stabilizers": 12, "local": 2}
    run = tiny.run(engine, tiny.tokens(64), "locret", options, budget=20, evict="chunk", chunk=16, new=1)
    for state in run.passes[:-1]:
        for row in (row for layer in state.kept for row in layer):
            assert set(range(max(0, state.stop - 12), state.stop)) <= set(row)
    last = [set(row) for layer in run.passes[-1].kept for row in layer]
    assert all({62, 63} <= row for row in last)
    assert not all(set(range(52, 64)) <= row for row in last), "scores choose among them in the end"


def test_equal_scores_go_by_position() -> None:
    """In the first layer equal tokens are equal: the newer ones stay, whatever the last bits say."""
    engine = tiny.Strict(tiny.make("llama", layers=1))
    options = {"seed": 1, "stabilizers": 0, "local": 0}
    run = tiny.run(engine, [5] * 20 + [9] * 20, "locret", options, budget=25, chunk=None, new=1)
    for row in run.passes[-1].kept[0]:
        assert sorted(row) in (list(range(15, 40)), [*range(15, 20), *range(20, 40)], [*range(20), *range(35, 40)])


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    engine = tiny.Strict(tiny.llama())
    path = tmp_path / "scores.safetensors"
    made = learned("wgkv", engine.geometry, training={"steps": 3, "last": {"loss": 0.5}})
    made.save(path)
    found = Learned.load(path)
    assert (found.method, found.shape, found.options, found.model) == ("wgkv", SHAPE, {"window": 5}, made.model)
    assert found.training == made.training
    assert found.digest == made.digest
    for a, b in zip(found.layers, made.layers, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    options = find_method("wgkv", {"file": str(path)}).options()
    assert options == {"file": str(path), "seed": None, "digest": made.digest, "window": None, "alpha": 0.0}
    assert find_method("wgkv", options).protected == 5, "the window that was trained"
    assert find_method("wgkv", options | {"window": 9}).protected == 9
    assert [p.name for p in tmp_path.iterdir()] == ["scores.safetensors"]
    learned("wgkv", engine.geometry, seed=8).save(path)
    with pytest.raises(UsageError, match=r"has digest \w{16}, not \w{16}: it has been trained again"):
        find_method("wgkv", options).prepare(engine.geometry, 20, None, Budget.of("0.5"))


def test_a_file_of_another_model_or_method_is_refused(tmp_path: Path) -> None:
    llama, qwen2 = tiny.Strict(tiny.llama()), tiny.Strict(tiny.qwen2())
    path = tmp_path / "scores.safetensors"
    learned("locret", llama.geometry).save(path)
    with pytest.raises(UsageError) as told:
        qwen2.generate([tiny.tokens(20)], method="locret", options={"file": str(path)}, keep=0.5)
    assert str(told.value) == (
        f"file {path} is of a model of 2 layers x 2 KV heads x 3 query heads of 8, this one has 3 layers x 3 KV heads "
        "x 2 query heads of 16: train one for this model (kvfoot train locret --model M)"
    )
    with pytest.raises(UsageError, match=r"was trained for locret, not for wgkv: use --method locret"):
        llama.generate([tiny.tokens(20)], method="wgkv", options={"file": str(path)}, keep=0.5)
    other = Geometry(*SHAPE, positions=512, identity="0" * 16)
    with pytest.raises(UsageError, match=r"is of another model \(tiny\) of the same shape: train one for this model"):
        find_method("locret", {"file": str(path)}).prepare(other, 20, None, Budget.of("0.5"))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    geometry = tiny.Strict(tiny.llama()).geometry
    learned("locret", geometry).save(path)
    whole, tensors = path.read_bytes(), {name: x.clone() for name, x in load_file(path).items()}
    cases: list[tuple[str, Any]] = [
        ("cut or damaged", lambda: path.write_bytes(whole[:300])),
        ("cut or damaged", lambda: path.write_bytes(b"no safetensors at all")),
        ("not written by kvfoot train", lambda: save_file(tensors, path)),
        ("of schema 9", lambda: save_file(tensors, path, metadata={"kvfoot": json.dumps({"schema": 9})})),
        ("damaged", lambda: save_file(tensors, path, metadata={"kvfoot": '{"schema": 1}'})),
        ("damaged: the weights are not those", lambda: path.write_bytes(whole[:-4] + b"\0\0\0\1")),
        ("No such file", path.unlink),
    ]
    for number, (line, spoil) in enumerate(cases):
        spoil()
        if path.exists():
            os.utime(path, ns=(number, number + 1))  # another time than that of the file that was read last
        with pytest.raises(UsageError, match=line):
            Learned.load(path)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("wgkv", {}, r"wgkv needs file=PATH, the scores.safetensors of a training: kvfoot train wgkv"),
        ("locret", {}, r"locret needs file=PATH, the scores.safetensors of a training: kvfoot train locret"),
        ("wgkv", {"file": "x", "seed": 1}, "file and seed exclude each other"),
        ("wgkv", {"seed": 1, "window": -1}, "window=-1 is negative"),
        ("wgkv", {"seed": 1, "alpha": 2.0}, r"alpha=2.0 is the share that every head gets, in \[0, 1\]"),
        ("locret", {"seed": 1, "local": -1}, "local=-1 is negative"),
        ("locret", {"seed": 1}, "budget=30 is below sinks . window = 2500"),
    ],
)
def test_bad_input(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        tiny.run(tiny.Strict(tiny.llama()), tiny.tokens(40), name, options, budget=30)


def test_no_reader_over_scores() -> None:
    engine, options = tiny.Strict(tiny.llama()), {"wgkv.seed": 1, "wgkv.window": 3}
    with pytest.raises(UsageError, match=r"refreshkv\+wgkv: wgkv watches every step"):
        engine.generate([tiny.tokens(40)], method="refreshkv+wgkv", options=options, keep=0.5)
    with pytest.raises(UsageError, match="a budget is divided over a method that evicts by scores"):
        find_method("adakv+locret", {"locret.seed": 1})


def test_methods_that_do_not_ask_are_given_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rotation is made, none is applied."""
    from kvfoot.engine.span import Heads

    engine, turned = tiny.Strict(tiny.llama()), []
    before = Heads.turn
    monkeypatch.setattr(Heads, "turn", lambda self, *a: (turned.append(self.layer), before(self, *a))[1])
    run = tiny.run(engine, tiny.tokens(30), "snapkv", {"window": 3}, keep=0.5, chunk=16)
    assert (turned, run.runner.rotation) == ([], None)
    tiny.run(engine, tiny.tokens(30), "wgkv", {"seed": 1, "window": 3}, keep=0.5, chunk=16, new=1)
    assert turned == [0, 1] * 2
