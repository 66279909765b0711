"""Both trainers of scores keep the tokens that a planted model needs; a run in pieces, or in two processes, is one."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from processes import Two

import tiny
from kvfoot.core.errors import NotFinite, UsageError
from kvfoot.core.learned import Learned
from kvfoot.methods.learn.locret import retaining
from kvfoot.methods.learn.wgkv import gates
from kvfoot.train.locret import Locret, LocretOptions
from kvfoot.train.packing import Written
from kvfoot.train.passes import hidden
from kvfoot.train.run import RunOptions, train
from kvfoot.train.wgkv import WGKV, WGKVOptions
from kvfoot.train.world import World

ONE = World(0, 1)
GATES = WGKVOptions(steps=100, window=planted.WINDOW, rate=0.01, weight=0.02)
HEADS = LocretOptions(steps=60, width=64, rate=0.005, warm=0.1, fall=0.5)
SHORT: dict[str, Any] = {"wgkv": replace(GATES, steps=8), "locret": replace(HEADS, steps=8, width=32)}


def model() -> Any:
    """Planted heads whose match is no certainty, so that a gate changes something; elsewhere they look at BOS."""
    return planted.make(sharp=1.0, sink=1.5)


def make(name: str, options: Any = None, world: World = ONE) -> Any:
    kind = {"wgkv": WGKV, "locret": Locret}[name]
    return kind(model(), options or SHORT[name], world)


def wanted(tokens: list[int], family: int) -> set[int]:
    first = planted.pair(family, 0, 0)
    return {i for i, token in enumerate(tokens) if first <= token < first + planted.KEYS * planted.VALUES}


def answers(engine: tiny.Strict, number: int, **how: Any) -> float:
    """Share of a row's 32 questions answered: text in chunks of 16, then token by token."""
    row = planted.row(number)
    tokens, right = row.tokens.tolist(), 0
    run = tiny.run(engine, tokens[:70], chunk=16, evict="chunk", new=1, **how)
    for at in range(70, planted.LENGTH - 1):
        logits = run.runner.feed(run.sequence, [tokens[at]], None)
        if row.supervised is not None and bool(row.supervised[at]):
            right += int(logits.argmax()) == tokens[at + 1]
    return right / 32


def trained(name: str, out: Path) -> Path:
    options = {"wgkv": GATES, "locret": HEADS}[name]
    how = RunOptions(out, batch=1, checkpointing=False, save_every=1000)
    train(make(name, options), Written(planted.row), how)
    return out / "scores.safetensors"


@pytest.mark.parametrize("name", ["wgkv", "locret"])
def test_the_tokens_that_planted_heads_need_are_kept(name: str, tmp_path: Path) -> None:
    """A row of 70 tokens before the first question: 8 pairs in each of two heads, and BOS, are worth keeping."""
    file = trained(name, tmp_path / "run")
    engine = tiny.Strict(model())
    options: dict[str, Any] = {"file": str(file)}
    options |= {"alpha": 1.0} if name == "wgkv" else {"stabilizers": planted.WINDOW, "local": planted.WINDOW}
    budget = planted.WINDOW + 12
    for number in (10**6, 10**6 + 1, 10**6 + 2):
        tokens = planted.row(number).tokens.tolist()[:70]
        run = tiny.run(engine, tokens, name, options, budget=budget, evict="chunk", chunk=16, new=1)
        kept = run.passes[-1].kept
        for family, (layer, head) in enumerate(planted.PLANTED):
            assert wanted(tokens, family) <= set(kept[layer][head]), f"family {family} of row {number}"
    full = answers(engine, 10**6, method="full")
    mine = answers(engine, 10**6, method=name, options=options, budget=budget)
    untrained = {"seed": 1} | {key: x for key, x in options.items() if key != "file"}
    untrained |= {"window": planted.WINDOW} if name == "wgkv" else {}
    control = answers(engine, 10**6, method=name, options=untrained, budget=budget)
    assert full > 0.9
    assert mine > full - 0.1
    assert control < 0.6


def test_planted_gates_tell_needed_tokens_from_others(tmp_path: Path) -> None:
    """In the planted heads the gates of pairs are far above the others' (but BOS), whose mean is near 0."""
    found = Learned.load(trained("wgkv", tmp_path / "run"))
    assert found.options == {"window": planted.WINDOW}
    trainer = make("wgkv", GATES)
    for layer, weights in zip(trainer.layers, found.layers, strict=True):
        for name, p in layer.items():
            p.data.copy_(weights[name])
    row = planted.row(10**6)
    with torch.no_grad(), trainer.running(False), trainer.mixed.attached(trainer.model):
        trainer._losses(row)
    for family, (layer, head) in enumerate(planted.PLANTED):
        gate = trainer.mixed.found[layer][head]
        needed = sorted(wanted(row.tokens.tolist(), family))
        others = [i for i in range(1, planted.LENGTH) if i not in needed]
        assert gate[needed].min() > gate[others].max() + 0.05
        assert gate[needed].mean() > 10 * gate[others].mean()


@pytest.mark.parametrize("name", ["wgkv", "locret"])
def test_what_is_trained_is_what_is_run(name: str, tmp_path: Path) -> None:
    """Scores in the engine's cache, read in chunks, are the trainer's in one pass."""
    trainer, row = make(name), planted.row(5)
    seen: dict[int, Tensor] = {}
    turned = trainer.mixed.turned

    def spy(layer: int, query: Tensor, key: Tensor, q: Tensor, k: Tensor, value: Tensor, scale: float) -> Any:
        if name == "wgkv":
            seen[layer] = gates(trainer.layers[layer], key[0], k[0])
        else:
            seen[layer] = retaining(trainer.layers[layer], query[0].unflatten(0, (len(k[0]), -1)), key[0], value[0])
        return turned(layer, query, key, q, k, value, scale)

    trainer.mixed.turned = spy
    with torch.no_grad(), trainer.running(False), trainer.mixed.attached(trainer.model):
        hidden(trainer.model, trainer.mixed, row, None, restart=False)
    file = tmp_path / "scores.safetensors"
    trainer.learned({"model": {}}).save(file)
    engine = tiny.Strict(trainer.model)
    options = {"file": str(file)} | ({} if name == "wgkv" else {"stabilizers": 0, "local": 0})
    run = tiny.run(engine, row.tokens.tolist(), name, options, budget=planted.LENGTH + 9, chunk=40, new=1)
    cache, rows = run.runner.cache, run.sequence.rows
    with torch.inference_mode():
        for layer in range(planted.LAYERS):
            found = cache.plane(rows, layer, tuple(range(planted.HEADS)), "score")[..., 0]
            torch.testing.assert_close(found, seen[layer], atol=1e-4, rtol=1e-4)


def short(out: Path, **more: Any) -> RunOptions:
    return RunOptions(out, batch=2, checkpointing=False, save_every=3, log_every=1, **more)


def weights(out: Path) -> dict[str, Tensor]:
    return Learned.load(out / "scores.safetensors")._named()


@pytest.mark.parametrize("name", ["wgkv", "locret"])
def test_a_run_in_pieces_is_the_same_run(name: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    record = train(make(name), Written(planted.row), short(whole))
    train(make(name), Written(planted.row), short(cut, stop=4))
    assert Learned.load(cut / "scores.safetensors").training["step"] == 4
    train(make(name), Written(planted.row), short(cut, resume=True))
    a, b = weights(whole), weights(cut)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (whole / "log.jsonl").read_text() == (cut / "log.jsonl").read_text()
    assert sorted(p.name for p in cut.iterdir()) == ["log.jsonl", "scores.safetensors", "state.safetensors"]
    losses = [json.loads(line)["loss"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    found = Learned.load(whole / "scores.safetensors")
    record = json.loads(json.dumps(record))
    assert {"packages", "device", "dtype", "seconds", "processes"} <= found.training.keys() == record.keys() - {"model"}
    assert found.training["last"] == record["last"]
    assert (found.training["method"], found.training["finished"], found.training["batch"]) == (name, True, 2)
    with pytest.raises(UsageError, match=r"seed 0 \(asked for 3\)"):
        train(make(name, replace(SHORT[name], seed=3)), Written(planted.row), short(cut, resume=True))


def test_a_loss_that_is_not_finite_names_the_last_checkpoint(tmp_path: Path) -> None:
    trainer = make("locret")

    def spoil(numbers: dict[str, float]) -> None:
        if numbers["step"] == 4:
            trainer.model.model.layers[1].self_attn.k_proj.weight.data[3] = float("nan")

    with pytest.raises(NotFinite, match=r"the loss is nan at step 5; the last good checkpoint is .*run, step 3"):
        train(trainer, Written(planted.row), short(tmp_path / "run"), spoil)
    assert Learned.load(tmp_path / "run" / "scores.safetensors").training["step"] == 3


def both(out: Path, world: World) -> None:
    for name in ("wgkv", "locret"):
        train(make(name, world=world), Written(planted.row), short(out / name))


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Gloo on the CPU, as torchrun starts them: losses and weights after 8 steps."""
    started = Two("test_scores_training", "both", tmp_path / "two")
    both(tmp_path / "one", ONE)
    started.wait()
    for name in ("wgkv", "locret"):
        one, two = (tmp_path / count / name for count in ("one", "two"))
        logs = [[json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()] for out in (one, two)]
        assert [len(log) for log in logs] == [8, 8]
        for a, b in zip(*logs, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        a, b = weights(one), weights(two)
        for key in a:
            assert (a[key] - b[key]).abs().max() < 2e-3, key
        assert Learned.load(two / "scores.safetensors").training["processes"] == 2
