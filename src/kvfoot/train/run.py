"""The one loop of all trainings on text: rows in, updates, log, checkpoints. A step is a trainer's function."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kvfoot.core.errors import NotFinite, UsageError
from kvfoot.core.files import write_whole
from kvfoot.engine.account import device as device_of
from kvfoot.engine.account import packages
from kvfoot.models.layout import geometry_of
from kvfoot.train.mixed import Mixed
from kvfoot.train.packing import Row, Source
from kvfoot.train.state import load_state, save_state
from kvfoot.train.world import World

HOUR = 3600.0
Listener = Callable[[dict[str, float]], None]


class Trainer(Protocol):
    """PruLong, DuoAttention, WG-KV, Locret or RefreshKV. options: a frozen dataclass that has `steps`.

    windows: why a model whose layers have windows of their own is refused. running: within, the model is as the steps
    need it. write: what is to be used of the training, renewed at every checkpoint by the first process. tensors and
    finish, at its end, are asked by every process, since weights may be divided among them. A record says how it was
    made, and of which model ("model": name and identity).
    """

    name: str
    paper: str
    windows: str
    model: Any
    world: World
    options: Any

    @property
    def mixed(self) -> Mixed: ...

    def step(self, step: int, rows: list[Row]) -> dict[str, float]: ...

    def running(self, checkpointing: bool) -> AbstractContextManager[None]: ...

    def write(self, out: Path, record: dict[str, Any]) -> None: ...

    def finish(self, out: Path, record: dict[str, Any]) -> None: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def load(self, tensors: dict[str, Tensor]) -> None: ...

    def described(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class RunOptions:
    """out: folder for state.safetensors, log.jsonl and what the trainer writes. batch: rows per step. save_every,
    log_every: steps. stop: end before this step with a state (a run in pieces). data: what the record says about it.
    """

    out: Path
    batch: int = 8
    save_every: int = 100
    log_every: int = 10
    resume: bool = False
    checkpointing: bool = True
    stop: int | None = None
    data: Any = None
    model_name: str = ""
    revision: str = ""


def train(trainer: Trainer, source: Source, options: RunOptions, listener: Listener | None = None) -> dict[str, Any]:
    """Train, or resume, and write `out`. -> the record.

    Raises UsageError (a folder that holds a run, nothing to resume), NotFinite with the last good checkpoint's name.
    """
    world, steps = trainer.world, trainer.options.steps
    described = {"method": trainer.name, "batch": options.batch, "data": options.data} | trainer.described()
    first, spent = _begin(trainer, source, options, described)
    end, log = min(steps, options.stop or steps), options.out / "log.jsonl"
    if world.first:
        _cut_log(log, first)
    saved, began, numbers = first, time.perf_counter() - spent, dict[str, float]()
    record = lambda step: _record(trainer, options, described, step, time.perf_counter() - began, numbers)  # noqa: E731
    with trainer.running(options.checkpointing), trainer.mixed.attached(trainer.model):
        for step in range(first, end):
            numbers = trainer.step(step, source.take(options.batch))
            if not all(map(isfinite, numbers.values())):
                where = (
                    f"the last good checkpoint is {options.out}, step {saved}" if saved else "there is no checkpoint"
                )
                raise NotFinite(f"the loss is {numbers['loss']} at step {step + 1}; {where}")
            done, last = step + 1, step + 1 == end
            if world.first and (done % options.log_every == 0 or last):
                _append(log, {"step": done, **numbers})
            if listener is not None:
                listener({"step": done, **numbers})
            if done % options.save_every == 0 or last:
                tensors = trainer.tensors()
                if world.first:
                    seconds = time.perf_counter() - began
                    meta = {"step": done, "data": source.state(), "options": described, "seconds": seconds}
                    save_state(options.out, tensors, meta)
                    trainer.write(options.out, record(done))
                world.wait()
                saved = done
    made = record(end)
    trainer.finish(options.out, made)
    return made


def _begin(trainer: Trainer, source: Source, options: RunOptions, described: dict[str, Any]) -> tuple[int, float]:
    """The first step, and the seconds spent before it."""
    if any(geometry_of(trainer.model).windows):
        raise UsageError(f"this model has layers with a window of their own{trainer.windows}: not supported")
    state = options.out / "state.safetensors"
    if not options.resume:
        if state.is_file():
            raise UsageError(f"--out {options.out} holds a run: pass --resume to go on with it, or give another folder")
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {options.out}: {error.strerror}: give a folder that can be written") from None
        trainer.world.wait()
        return 0, 0.0
    tensors, meta = load_state(options.out, json.loads(json.dumps(described)))
    trainer.load(tensors)
    source.restore(meta["data"])
    return int(meta["step"]), float(meta["seconds"])


def _record(
    trainer: Trainer,
    options: RunOptions,
    described: dict[str, Any],
    step: int,
    seconds: float,
    numbers: dict[str, float],
) -> dict[str, Any]:
    model = trainer.model
    return described | {
        "paper": trainer.paper,
        "step": step,
        "finished": step == trainer.options.steps,
        "seconds": round(seconds, 1),
        "last": numbers,
        "processes": trainer.world.size,
        "device": device_of(model.device),
        "packages": packages(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "revision": options.revision,
        "model": {"name": options.model_name, "identity": geometry_of(model).identity},
    }


def _append(log: Path, entry: dict[str, float]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _cut_log(log: Path, step: int) -> None:
    """Entries after `step` were written by a run that was cut after its last checkpoint."""
    if log.is_file():
        lines = [line for line in log.read_text().splitlines() if line and _step(line) <= step]
        write_whole(log, "".join(f"{line}\n" for line in lines))


def _step(line: str) -> float:
    """A line that a cut left unfinished counts as of a later step."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return inf


def estimate(model: Any, tokens: int, length: int, passes: float) -> float:
    """Seconds that `tokens` in rows of `length` take on this CPU, by the speed of a matrix product.

    passes: forward passes that a step costs (backward through activations alone counts as one).
    """
    geometry = geometry_of(model)
    size = sum(p.numel() for p in model.parameters())
    width = geometry.kv_heads * geometry.group * geometry.head_dim
    work = 2 * size + 2 * geometry.layers * width * length  # products per token, causal attention's half included
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    a @ b
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    rate = 10 * 2 * 512**3 / (time.perf_counter() - started)
    return tokens * passes * work / (0.5 * rate)


def check_time(seconds: float, yes: bool, say: Callable[[str], None]) -> None:
    """Raises UsageError for a run of more than an hour without a GPU, unless it was accepted."""
    if seconds <= HOUR:
        return
    message = f"no GPU: this run takes about {seconds / HOUR:,.1f} hours on this CPU"
    if not yes:
        raise UsageError(f"{message}; pass --yes to go on, or run where there is a GPU")
    say(message)
