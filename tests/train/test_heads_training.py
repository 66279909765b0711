"""Both trainers find planted heads; a run that is killed and resumed is the same run; two processes are one."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from processes import Two

from kvfoot.core.errors import NotFinite, UsageError
from kvfoot.core.roles import HeadGates
from kvfoot.train.duo import Duo, DuoOptions
from kvfoot.train.heads import train_heads
from kvfoot.train.packing import Written
from kvfoot.train.prulong import PruLong, PruLongOptions
from kvfoot.train.run import RunOptions, check_time, estimate
from kvfoot.train.state import load_state
from kvfoot.train.world import World, shard

SHAPE = (planted.LAYERS, planted.HEADS)
NEAR: dict[str, Any] = {"sink": planted.SINK, "window": planted.WINDOW}
SHORT = PruLongOptions(sparsity=0.8, steps=20, **NEAR)


def found(gates: HeadGates, sparsity: float) -> set[tuple[int, int]]:
    full = gates.full(sparsity)
    return {(layer, head) for layer in range(SHAPE[0]) for head in range(SHAPE[1]) if full[layer, head]}


def test_the_planted_model_looks_up_its_keys() -> None:
    model, row = planted.make(), planted.row(0)
    with torch.no_grad():
        logits = model(row.tokens[None]).logits[0]
    at = row.supervised.nonzero()[:, 0]  # type: ignore[union-attr]
    assert (logits[at].argmax(-1) == row.tokens[at + 1]).float().mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_prulong_finds_exactly_the_planted_heads(tmp_path: Path, seed: int) -> None:
    """With the constants of the paper's code; 0.8 of 12 heads leaves 2."""
    trainer = PruLong(planted.make(), SHAPE, PruLongOptions(sparsity=0.8, steps=200, seed=seed, **NEAR), World(0, 1))
    options = RunOptions(tmp_path, batch=1, checkpointing=False, save_every=1000)
    gates = train_heads(trainer, Written(planted.plain), options)
    assert found(gates, 0.8) == set(planted.PLANTED)
    open_ = gates.gates[[layer for layer, _ in planted.PLANTED], [head for _, head in planted.PLANTED]]
    rest = sorted(gates.gates.ravel())[:-2]
    assert open_.min() > 1
    assert max(rest) < -2
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["sparsity"] == pytest.approx(0.8, abs=0.05)
    assert last["target"] == 0.8


@pytest.mark.slow
@pytest.mark.parametrize("quirk", [False, True])
def test_duoattention_finds_exactly_the_planted_heads(tmp_path: Path, quirk: bool) -> None:
    options = DuoOptions(steps=80, rate=0.1, weight=0.1, teacher_branch=quirk, **NEAR)
    trainer = Duo(planted.make(), SHAPE, options, World(0, 1))
    how = RunOptions(tmp_path, batch=1, checkpointing=False, save_every=1000)
    gates = train_heads(trainer, Written(planted.row), how)
    assert found(replace(gates, rule="top"), 0.8) == set(planted.PLANTED)
    ranked = sorted(gates.gates.ravel())
    assert ranked[-2] - ranked[-3] > 0.15


def test_the_l1_term_as_a_mean_and_as_the_paper_s_sum() -> None:
    """Trap 17: with gates that change nothing the first step's gradient is weight / heads, or weight."""
    for norm, expected in (("mean", 0.05 / 12), ("sum", 0.05)):
        options = DuoOptions(steps=4, norm=norm, **(NEAR | {"window": planted.LENGTH}))  # type: ignore[arg-type]
        trainer = Duo(planted.make(), SHAPE, options, World(0, 1))
        with trainer.mixed.attached(trainer.model):
            trainer.step(0, Written(planted.row).take(1))
        assert trainer.alpha.grad is not None
        assert trainer.alpha.grad.ravel().tolist() == pytest.approx([expected] * 12, rel=1e-4)


def test_sampled_sparsity_and_no_linear_term() -> None:
    options = replace(SHORT, measure="sampled", linear=False)
    trainer = PruLong(planted.make(), SHAPE, options, World(0, 1))
    with trainer.mixed.attached(trainer.model):
        numbers = [trainer.step(step, Written(planted.plain).take(2)) for step in range(6)]
    gates = PruLong(trainer.model, SHAPE, options, World(0, 1)).gates
    drawn = [1 - gates.draw(0, 0, i).mean().item() for i in range(2)]
    assert numbers[0]["sparsity"] == pytest.approx(sum(drawn) / 2)
    assert all(x["lambda1"] == 0 for x in numbers)
    assert numbers[-1]["lambda2"] > 0


def short(out: Path, **more: Any) -> RunOptions:
    return RunOptions(out, batch=2, checkpointing=False, save_every=5, log_every=1, **more)


def trained(out: Path, **more: Any) -> HeadGates:
    trainer = PruLong(planted.make(), SHAPE, SHORT, World(0, 1))
    return train_heads(trainer, Written(planted.plain), short(out, **more))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HeadGates]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, trained(out)


def test_what_a_run_leaves(whole: tuple[Path, HeadGates]) -> None:
    out, gates = whole
    assert sorted(p.name for p in out.iterdir()) == ["heads.json", "heads.txt", "log.jsonl", "state.safetensors"]
    saved = HeadGates.load(out / "heads.json")
    assert (saved.gates == gates.gates).all()
    assert (saved.scale, saved.sparsity, saved.sink, saved.window) == ("log_alpha", 0.8, 4, 16)
    training = saved.training
    assert (training["method"], training["step"], training["batch"], training["seed"]) == ("prulong", 20, 2, 0)
    assert {"packages", "device", "seconds", "dtype", "last"} <= training.keys()
    assert (out / "heads.txt").read_text().count("[") == 2
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == list(range(1, 21))


def test_a_run_in_pieces_is_the_same_run(whole: tuple[Path, HeadGates], tmp_path: Path) -> None:
    trained(tmp_path / "run", stop=7)
    again = trained(tmp_path / "run", resume=True)
    assert (again.gates == whole[1].gates).all()
    assert (tmp_path / "run" / "log.jsonl").read_text() == (whole[0] / "log.jsonl").read_text()


KILLED = """
import sys, time; sys.path.insert(0, sys.argv[1])
import planted, test_heads_training as t
from pathlib import Path
def slow(number):
    time.sleep(0.05)
    return planted.plain(number)
trainer = t.PruLong(planted.make(), t.SHAPE, t.SHORT, t.World(0, 1))
t.train_heads(trainer, t.Written(slow), t.short(Path(sys.argv[2])))
"""


def test_killed_and_resumed(whole: tuple[Path, HeadGates], tmp_path: Path) -> None:
    """kill -9 somewhere after a checkpoint: what was logged after it is done again."""
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(out)])
    deadline = time.time() + 60
    while not (out / "state.safetensors").is_file() and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_state(out, {})[1]["step"] < 20, "killed too late"
    again = trained(out, resume=True)
    assert (again.gates == whole[1].gates).all()
    assert (out / "log.jsonl").read_text() == (whole[0] / "log.jsonl").read_text()


def both(out: Path, world: World) -> None:
    """20 steps of each trainer; of two processes, PruLong's have divided the weights too."""
    sharded = shard(planted.make(), world, 2)
    duo = DuoOptions(steps=20, rate=0.1, **NEAR)
    for trainer in (PruLong(sharded, SHAPE, SHORT, world), Duo(planted.make(), SHAPE, duo, world)):
        how = replace(short(out / trainer.name), checkpointing=trainer.name == "prulong")
        train_heads(trainer, Written(planted.row), how)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Gloo on the CPU, as torchrun starts them: loss and gates after 20 steps."""
    started = Two("test_heads_training", "both", tmp_path / "two")
    both(tmp_path / "one", World(0, 1))
    started.wait()
    for name in ("prulong", "duo"):
        one, two = (tmp_path / count / name for count in ("one", "two"))
        gates = [HeadGates.load(out / "heads.json") for out in (one, two)]
        assert abs(gates[0].gates - gates[1].gates).max() < 1e-3
        assert [gates[0].training["processes"], gates[1].training["processes"]] == [1, 2]
        logs = [[json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()] for out in (one, two)]
        assert [len(log) for log in logs] == [20, 20]
        for a, b in zip(*logs, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_resuming_is_refused_with_other_options(whole: tuple[Path, HeadGates], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a run: pass --resume"):
        trained(whole[0])
    with pytest.raises(UsageError, match="nothing to go on with"):
        trained(tmp_path, resume=True)
    trainer = PruLong(planted.make(), SHAPE, replace(SHORT, sparsity=0.5), World(0, 1))
    with pytest.raises(UsageError, match=r"of another run: sparsity 0.8 \(asked for 0.5\)"):
        train_heads(trainer, Written(planted.plain), short(whole[0], resume=True))
    state = tmp_path / "state.safetensors"
    state.write_bytes((whole[0] / "state.safetensors").read_bytes()[:200])
    with pytest.raises(UsageError, match=r"state\.safetensors is cut or damaged"):
        trained(tmp_path, resume=True)


def test_a_loss_that_is_not_finite_names_the_last_checkpoint(tmp_path: Path) -> None:
    trainer = PruLong(planted.make(), SHAPE, SHORT, World(0, 1))
    source = Written(planted.plain)

    def spoil(numbers: dict[str, float]) -> None:
        if numbers["step"] == 6:
            trainer.model.lm_head.weight.data[3] = float("nan")

    with pytest.raises(NotFinite, match=r"the loss is nan at step 7; the last good checkpoint is .*run, step 5"):
        train_heads(trainer, source, short(tmp_path / "run"), spoil)
    assert HeadGates.load(tmp_path / "run" / "heads.json").training["step"] == 5


def test_shards_need_equal_shares() -> None:
    with pytest.raises(UsageError, match="3 rows of a step do not divide among 2 processes"):
        shard(planted.make(), World(0, 2), 3)


def test_rows_without_passkeys_are_refused() -> None:
    trainer = Duo(planted.make(), SHAPE, DuoOptions(**NEAR), World(0, 1))
    with pytest.raises(UsageError, match="which tokens repeat a passkey"):
        trainer.step(0, [planted.plain(0)])


def test_an_hour_without_a_gpu_asks_first() -> None:
    model = planted.make()
    assert estimate(model, 1_000_000, 4096, 4) > 5 * estimate(model, 100_000, 1024, 4)
    said: list[str] = []
    check_time(3000, False, said.append)
    with pytest.raises(UsageError, match=r"no GPU: this run takes about 2.0 hours on this CPU; pass --yes"):
        check_time(7200, False, said.append)
    check_time(7200, True, said.append)
    assert said == ["no GPU: this run takes about 2.0 hours on this CPU"]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: PruLongOptions(sparsity=1.0), r"in \[0, 1\)"),
        (lambda: PruLongOptions(steps=0), "--steps 0"),
        (lambda: PruLongOptions(warm=2.0), "shares of the steps"),
        (lambda: DuoOptions(weight=-1.0), "weight of 0 or more"),
        (lambda: DuoOptions(edge=0.7), "at most one half"),
        (lambda: DuoOptions(steps=0), "--steps 0"),
    ],
)
def test_bad_recipes(make: Any, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        make()
