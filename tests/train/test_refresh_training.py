"""RefreshKV's training mask is its definition, the choice is the method's own, and a resumed run is one run."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Two
from torch import Tensor

import tiny
from kvfoot.core.errors import UsageError
from kvfoot.train.packing import Packed, Row, Written
from kvfoot.train.refresh import Refresh, RefreshOptions, Single
from kvfoot.train.run import RunOptions, train
from kvfoot.train.twopart import TwoPart
from kvfoot.train.world import World, divided

TAIL, SIZE, LENGTH = 6, 10, 48
SHORT = RefreshOptions(steps=6, tail=TAIL, size=SIZE, rate=1e-3, warm=2)


def expected(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, list[list[int]]]:
    """Plain loops: q [G, H, T, D], k and v [G, T, D] -> [G, H, T, D] and the entries that each KV head's tail reads."""
    G, H, T, _ = q.shape
    L, half = T - TAIL, 3
    out, chosen = torch.zeros_like(q), []
    for g in range(G):
        weights = [(q[g, h, L - 1] @ k[g, :L].T * scale).softmax(-1).tolist() for h in range(H)]
        raw = [max(w[j] for w in weights) for j in range(L - 1)]
        pooled = [max(raw[max(0, j - half) : j + half + 1]) for j in range(L - 1)]
        order = sorted(range(L - 1), key=lambda j: (pooled[j], raw[j]))
        own = [*order[-(SIZE - 1) :], L - 1]
        chosen.append(own)
        for t in range(T):
            sees = list(range(t + 1)) if t < L else sorted(own) + list(range(L, t + 1))
            for h in range(H):
                out[g, h, t] = (q[g, h, t] @ k[g, sees].T * scale).softmax(-1) @ v[g, sees]
    return out, chosen


def test_the_mask_is_its_definition_forwards_and_backwards() -> None:
    torch.manual_seed(0)
    G, H, D = 2, 3, 8
    q, k, v = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in
               ((G, H, LENGTH, D), (G, LENGTH, D), (G, LENGTH, D)))  # fmt: skip
    part = TwoPart(TAIL, SIZE)
    found = part.attend(0, q.flatten(0, 1)[None], k[None], v[None], 0.7)[0].transpose(0, 1).unflatten(0, (G, H))
    wanted, chosen = expected(q, k, v, 0.7)
    assert part.chosen[0][0].tolist() == chosen
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(found)
    gradients = torch.autograd.grad((found * weight).sum(), (q, k, v))
    for a, b in zip(gradients, torch.autograd.grad((wanted * weight).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)


def test_it_trains_what_the_method_does() -> None:
    """The tail's first token, through all layers: the method's first partial step after a prompt of L tokens."""
    model = tiny.make("llama", layers=3)
    tokens = tiny.tokens(LENGTH, 5)
    part = TwoPart(TAIL, SIZE)
    with torch.no_grad(), part.attached(model):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    L = LENGTH - TAIL
    engine = tiny.Strict(model)
    options = {"similarity": -2, "max_gap": None}
    run = tiny.run(engine, tokens[:L], "refreshkv", options, budget=SIZE, later=[tokens[L]], new=1)
    full = tiny.run(engine, tokens[:L], later=[tokens[L]], new=1)
    torch.testing.assert_close(run.passes[-1].logits, logits[L], atol=1e-4, rtol=0)
    assert (full.passes[-1].logits - logits[L]).abs().max() > 1e-2
    torch.testing.assert_close(run.passes[0].logits, logits[L - 1], atol=1e-4, rtol=0)
    engine.close()


def row(number: int) -> Row:
    return Row(torch.tensor(tiny.tokens(LENGTH, number % 3)), ((0, LENGTH),))


def model() -> Any:
    return tiny.make("llama", seed=4)


def trained(out: Path, options: RefreshOptions = SHORT, **more: Any) -> tuple[Refresh, dict[str, Any]]:
    trainer = Refresh(model(), options, World(0, 1))
    how = RunOptions(out, batch=2, save_every=2, log_every=1, **{"checkpointing": False} | more)
    return trainer, train(trainer, Written(row), how)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_resumed_run_is_one_run(tmp_path: Path, lora: int) -> None:
    options = replace(SHORT, lora=lora)
    whole, record = trained(tmp_path / "whole", options)
    _, part = trained(tmp_path / "cut", options, stop=3)
    assert (part["step"], part["finished"]) == (3, False)
    assert not (tmp_path / "cut" / "model").exists()
    again, _ = trained(tmp_path / "cut", options, resume=True)
    from safetensors.torch import load_file

    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    start = model().state_dict()
    assert a.keys() == b.keys() == start.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    moved = {name for name in a if not torch.equal(a[name], start[name])}
    assert moved == ({name for name in a if "self_attn" in name} if lora else set(a))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    losses = [json.loads(line)["loss"] for line in logs[0].splitlines()]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert record["last"]["rate"] == pytest.approx(1e-3 / 4)
    assert whole.options == again.options


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    _, plain = trained(tmp_path / "plain", stop=2)
    _, saved = trained(tmp_path / "saved", stop=2, checkpointing=True)
    assert saved["last"] == pytest.approx(plain["last"], rel=1e-5)


def test_the_loss_is_the_mean_over_all_tokens() -> None:
    trainer = Refresh(model(), SHORT, World(0, 1))
    rows = [row(0), row(1)]
    with torch.no_grad(), trainer.mixed.attached(trainer.model):
        logits = torch.stack([trainer.model(r.tokens[None], use_cache=False).logits[0] for r in rows])
    nll = torch.stack([
        torch.nn.functional.cross_entropy(x[:-1], r.tokens[1:], reduction="none")
        for x, r in zip(logits, rows, strict=True)
    ])  # fmt: skip
    with trainer.mixed.attached(trainer.model):
        numbers = trainer.step(0, rows)
    assert numbers["loss"] == pytest.approx(nll.mean().item(), rel=1e-5)
    assert numbers["tail"] == pytest.approx(nll[:, -TAIL + 1 :].mean().item(), rel=1e-5)


class Half(World):
    """One of two processes, whose sums stay its own."""

    def sum_(self, *tensors: Tensor) -> None:
        return None


def test_two_processes_add_up_to_one() -> None:
    options = replace(SHORT, clip=0.0)
    found = []
    for world in (World(0, 1), Half(0, 2), Half(1, 2)):
        trainer = Refresh(model(), options, world)
        with trainer.mixed.attached(trainer.model):
            loss = trainer.step(0, [row(i) for i in range(3)])["loss"]
        found.append((loss, {name: p.grad for name, p in trainer.weights.items()}))
    whole, *halves = found
    assert sum(loss for loss, _ in halves) == pytest.approx(whole[0], rel=1e-5)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(halves[0][1][name] + halves[1][1][name], gradient, atol=1e-6, rtol=1e-4)


RUNS: dict[str, tuple[dict[str, int], bool]] = {"whole": ({}, False), "shard": ({}, True), "lora": ({"lora": 2}, True)}
"""By name: options beside SHORT, and whether the layers' weights are divided where there are processes."""


def several(out: Path, world: World) -> None:
    """Each run in two pieces; of two processes the second goes on from what both have written."""
    for name, (more, shard) in RUNS.items():
        for stop in (3, None):
            trainer = Refresh(model(), replace(SHORT, **more), world, rows=2 if shard else None)
            how = RunOptions(
                out / name, batch=2, save_every=3, log_every=1, checkpointing=shard, stop=stop, resume=stop is None
            )
            train(trainer, Written(row), how)
            if world.first and world.size > 1 and stop:
                shutil.copytree(out / name, out / f"{name} half")
            if shard and world.size > 1:
                parts = [p for p in trainer.weights.values() if divided(p)]
                assert sum(p.to_local().numel() for p in parts) <= 0.55 * sum(p.numel() for p in parts)  # type: ignore[attr-defined]
                assert len(parts) >= (8 if more else 14)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Gloo on the CPU, as torchrun starts them: losses, weights and a resumed run, weights whole or divided (FSDP2)."""
    from safetensors.torch import load_file

    started = Two("test_refresh_training", "several", tmp_path / "two")
    several(tmp_path / "one", World(0, 1))
    started.wait()
    for name, (more, shard) in RUNS.items():
        one, two = (tmp_path / count / name for count in ("one", "two"))
        logs = [[json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()] for out in (one, two)]
        assert [len(log) for log in logs] == [6, 6]
        for a, b in zip(*logs, strict=True):
            assert a == pytest.approx(b, rel=1e-4)
        assert logs[0][-1]["loss"] < logs[0][0]["loss"]
        assert json.loads((two / "train.json").read_text())["processes"] == 2
        a, b = (load_file(out / "model" / "model.safetensors") for out in (one, two))
        start = model().state_dict()
        assert a.keys() == b.keys() == start.keys()
        for key, x in a.items():  # AdamW moves a weight by its gradient's sign, however small that is
            torch.testing.assert_close(x, b[key], atol=5e-4, rtol=1e-3)
            assert (x - b[key]).abs().mean() < 0.02 * (x - start[key]).abs().mean() + 1e-9
        # What two processes left goes on in one.
        trainer = Refresh(model(), replace(SHORT, **more), World(0, 1), rows=2 if shard else None)
        half = tmp_path / "two" / f"{name} half"
        how = RunOptions(half, batch=2, save_every=3, log_every=1, checkpointing=shard, resume=True)
        train(trainer, Written(row), how)
        last = json.loads((half / "log.jsonl").read_text().splitlines()[-1])
        assert last == pytest.approx(logs[0][-1], rel=1e-4)


def test_a_divided_batch_has_equal_shares() -> None:
    with pytest.raises(UsageError, match="3 rows of a step do not divide among 2 processes"):
        Refresh(model(), SHORT, World(0, 2), rows=3)


def test_the_rate_goes_up_and_down() -> None:
    options = RefreshOptions()
    assert [options.at(step) for step in (0, 19, 20, 1874)] == pytest.approx([2.5e-7, 5e-6, 5e-6, 5e-6 / 1855])
    assert math.isclose(RefreshOptions(warm=0, steps=4).at(0), 5e-6)


def test_rows_are_of_one_document(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(chr(97 + i) * 70)
    text = Packed(sorted(tmp_path.iterdir()), lambda x: list(x.encode()), 32)
    rows = Single(text).take(20)
    assert all(len(r.spans) == 1 and len(set(r.tokens.tolist())) == 1 for r in rows)
    with pytest.raises(UsageError, match="none of 1000 rows of 128 tokens is of one document"):
        Single(Packed(text.files, text.encode, 128)).take(1)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a row of 12 tokens leaves 6 before the tail"):
        TwoPart(TAIL, SIZE).attend(0, torch.zeros(1, 2, 12, 4), torch.zeros(1, 1, 12, 4), torch.zeros(1, 1, 12, 4), 1)
    with pytest.raises(UsageError, match="kernel=4 has to be odd"):
        RefreshOptions(kernel=4)
    trained(tmp_path / "run", stop=1)
    with pytest.raises(UsageError, match="holds a run: pass --resume"):
        trained(tmp_path / "run")
    with pytest.raises(UsageError, match=r"size 10 \(asked for 11"):
        trained(tmp_path / "run", replace(SHORT, size=11), resume=True)
    with pytest.raises(UsageError, match="targets=nothing"):
        Refresh(model(), replace(SHORT, lora=2, targets="nothing"), World(0, 1))
