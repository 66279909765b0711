"""Gates of heads on one GPU: PruLong at several sparsities and seeds, DuoAttention, and what they are worth.

    python benchmarks/gates_gpu.py --data DATA --out OUT --models recall --minutes 8.5
    python benchmarks/gates_gpu.py --data DATA --out OUT --models FOLDER/SmolLM2-135M-Instruct --minutes 8.5
    python benchmarks/gates_gpu.py --data DATA --out OUT --models FOLDER/Qwen2.5-Coder-0.5B --rows 2 --minutes 8.5

Models are aliases (recall, smollm2), hub names or folders with config, tokenizer and weights, one or more, separated by
commas; --minutes is for all of them. Called again with the same arguments and OUT/, what was cut goes on and what is
there is left alone. A run in a few seconds, on a CPU:

    python benchmarks/gates_gpu.py --data DATA --out OUT --models recall --length 512 --rows 1 --duo-rows 1 --steps 4
        --duo-steps 4 --sink 16 --window 64 --sparsities 0.7 --seeds 1 --fresh 2 --tasks keys4 --task-length 1024
        --samples 2 --workers 1

DATA has books/, words/ and longproc/ (docs/recall.md); training reads its training side, tasks the development side.
`recall` learns from documents like those that it was trained on (needles, JSON, chains, routes, books; DuoAttention:
those with answers), any other model from books (DuoAttention: ten passkeys in them).

OUT/MODEL/RUN/ gets heads.json, heads.txt, log.jsonl and a state. The middle sparsity and DuoAttention come first, then
the other sparsities, then seeds. OUT/MODEL-summary.json: per run the nll of rows that no run was trained on, for its
heads, for random heads and for none. OUT/MODEL-tasks/: `kvfoot eval` of all runs that are finished, at each of
--task-sparsities, beside random heads and all-streaming heads of the same footprint (gates_tasks.py); --reserve of the
minutes are kept for it. What is worth shipping goes to src/kvfoot/data/heads/MODEL-RUN.json, where the methods prulong
and duo find it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gates_rows import in_parallel, of_books, of_recall
from gates_tasks import TASKS, check_tasks, judge_tasks

from kvfoot.core.files import write_whole
from kvfoot.core.roles import HeadGates
from kvfoot.engine.engine import Engine
from kvfoot.evaluate.tasks.corpus import read_corpus
from kvfoot.models.layout import geometry_of
from kvfoot.models.load import Loaded, load
from kvfoot.train.duo import Duo, DuoOptions
from kvfoot.train.heads import train_heads
from kvfoot.train.mixed import Mixed, Near
from kvfoot.train.packing import Row, Written
from kvfoot.train.passes import frozen, hidden, nll
from kvfoot.train.prulong import PruLong, PruLongOptions
from kvfoot.train.run import RunOptions
from kvfoot.train.state import NAME
from kvfoot.train.world import World

FRESH = 10_000_000
"""Rows from this number on are never trained on."""


class Plan(NamedTuple):
    """What is trained: tokens of a row, rows of a step (PruLong, DuoAttention), steps, near mask."""

    length: int
    rows: int
    duo_rows: int
    steps: int
    duo_steps: int
    sink: int
    window: int


PLANS = {
    "recall": Plan(8192, 4, 4, 300, 300, 128, 256),
    "": Plan(8192, 4, 1, 200, 400, 128, 1024),
}
"""By model; "" is any other."""


class Set(NamedTuple):
    """A run of the plan."""

    name: str
    sparsity: float | None
    seed: int


def sets(sparsities: list[float], seeds: int) -> list[Set]:
    """PruLong at every sparsity, at 0.7 (or the middle one) with every seed; DuoAttention with every seed."""
    middle = 0.7 if 0.7 in sparsities else sparsities[len(sparsities) // 2]
    found = [Set(f"prulong-{middle:g}", middle, 0), Set("duo", None, 0)]
    found += [Set(f"prulong-{s:g}", s, 0) for s in sparsities if s != middle]
    for seed in range(1, seeds):
        found += [Set(f"prulong-{middle:g}-seed{seed}", middle, seed), Set(f"duo-seed{seed}", None, seed)]
    return found


@torch.no_grad()
def score(model: Any, rows: list[Row], full: np.ndarray, near: Near) -> float:
    """Mean nll of the targets with `full` heads open and all others streaming."""
    z, mixed, total, count = torch.tensor(full, dtype=torch.float32, device=model.device), Mixed(near), 0.0, 0
    with frozen(model, checkpointing=False), mixed.attached(model):
        for row in rows:
            targets = row.targets()
            total += float(nll(model, hidden(model, mixed, row, z, restart=False), targets))
            count += int((targets >= 0).sum())
    return total / max(count, 1)


def random_heads(shape: tuple[int, int], count: int, seed: int) -> np.ndarray:
    chosen = np.zeros(shape[0] * shape[1], bool)
    chosen[np.random.default_rng(seed).permutation(chosen.size)[:count]] = True
    return chosen.reshape(shape)


def judge(gates: HeadGates, sparsities: list[float], scored: Callable[[np.ndarray], float]) -> dict[str, Any]:
    """Nll by sparsity: with all heads full, with these heads, with as many random ones (three draws), with none.

    Both methods' gates are rounded by one rule, so that they are compared at the same number of heads.
    """
    shape, gates = gates.shape, replace(gates, rule="top")
    found: dict[str, Any] = {"full": scored(np.ones(shape, bool)), "streaming": scored(np.zeros(shape, bool))}
    for sparsity in sparsities:
        full = gates.full(sparsity)
        others = [scored(random_heads(shape, int(full.sum()), seed)) for seed in range(3)]
        found[f"{sparsity:g}"] = {
            "heads": scored(full),
            "random": others,
            "full_heads": int(full.sum()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", default="recall,smollm2", help="aliases or folders, in this order")
    parser.add_argument("--sparsities", default="0.3,0.5,0.7,0.9")
    parser.add_argument("--seeds", type=int, default=3, help="runs at the middle sparsity, and of DuoAttention")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time, with what is there")
    parser.add_argument("--reserve", type=float, default=2.0, help="of the minutes: for tasks, per model")
    parser.add_argument("--distinct", type=int, default=1200, help="most rows that are made; steps go round in them")
    parser.add_argument("--tasks", help="names of kvfoot eval, or none (default by model)")
    parser.add_argument("--task-length", type=int, default=4096)
    parser.add_argument("--task-sparsities", default="0.7", help="those at which tasks compare")
    parser.add_argument("--samples", type=int, default=32, help="of a task")
    parser.add_argument("--fresh", type=int, default=16, help="rows that judge")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    for name in Plan._fields:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default by model: {name}")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.time() + given.minutes * 60
    names = given.models.split(",")
    folders = [Path(name).name for name in names]
    if len(set(folders)) < len(folders):
        parser.error(f"--models {given.models}: two of one name would write to one folder")
    for name in names:
        own = {field: getattr(given, field) for field in Plan._fields if getattr(given, field) is not None}
        plan = PLANS.get(name, PLANS[""])._replace(**own)
        tasks = given.tasks or TASKS.get(name, TASKS[""])
        loaded = load(name, device="cpu", dtype="bfloat16" if torch.cuda.is_available() else "auto")
        positions = geometry_of(loaded.model).positions
        if max(plan.length, given.task_length if tasks != "none" else 0) > positions:
            parser.error(f"{name} has {positions} positions: give a smaller --length or --task-length")
        if tasks != "none":
            engine = Engine(loaded.model, loaded.tokenizer, name=name)
            check_tasks(engine, tasks, given.task_length, given.samples, given.data)
            engine.close()
        reserve = given.reserve * 60 if tasks != "none" else 0.0
        train(name, loaded, given, plan, end - reserve)
        if tasks != "none":
            judge_by_tasks(name, loaded, given, plan, tasks, end)


def judge_by_tasks(name: str, loaded: Loaded, given: argparse.Namespace, plan: Plan, tasks: str, end: float) -> None:
    """All runs that are finished, at the sparsities that the tasks compare."""
    folder = given.out / Path(name).name
    summary = json.loads(_summary(name, given).read_text()) if _summary(name, given).is_file() else {}
    found = {run: folder / run / "heads.json" for run in summary}
    if not found:
        print(f"{name}: no run is finished, nothing to judge", flush=True)
        return
    engine = Engine(loaded.model, loaded.tokenizer, name=name, revision=loaded.revision)
    sparsities = [float(s) for s in given.task_sparsities.split(",")]
    done = judge_tasks(
        engine, found, given.out / f"{Path(name).name}-tasks", sparsities=sparsities, tasks=tasks,
        length=given.task_length, samples=given.samples, data=given.data, near=(plan.sink, plan.window), end=end,
    )  # fmt: skip
    engine.close()
    print(f"{name}: tasks {'finished' if done else 'cut by --minutes, call again to go on'}", flush=True)


def _summary(name: str, given: argparse.Namespace) -> Path:
    path: Path = given.out / f"{Path(name).name}-summary.json"
    return path


def train(name: str, loaded: Loaded, given: argparse.Namespace, plan: Plan, end: float) -> None:
    sparsities = [float(s) for s in given.sparsities.split(",")]
    summary_path = _summary(name, given)
    summary = json.loads(summary_path.read_text()) if summary_path.is_file() else {}
    cuda = torch.cuda.is_available()
    if all(one.name in summary for one in sets(sparsities, given.seeds)):
        loaded.model.to("cuda" if cuda else "cpu")
        return
    numbers = list(range(min(plan.steps * plan.rows, given.distinct)))
    duo_numbers = list(range(min(plan.duo_steps * plan.duo_rows, given.distinct)))
    fresh = list(range(FRESH, FRESH + given.fresh))
    began = time.time()
    if name == "recall":
        from kvfoot.models.builtin import SHIPPED

        makes = of_recall(given.data, SHIPPED["recall"], plan.length)
        data = in_parallel(makes[0], numbers, given.workers)
        duo_data, held = (in_parallel(makes[1], which, given.workers) for which in (duo_numbers, fresh))
    else:
        books = partial(of_books, given.data, read_corpus(given.data, "train"), loaded.tokenizer, plan.length)
        data, duo_data = books(False, 0, len(numbers)), books(True, 0, len(duo_numbers))
        held = books(True, 1, given.fresh)
    print(f"{name}: {len(data) + len(duo_data)} rows in {time.time() - began:.0f} s", flush=True)
    model = loaded.model.to("cuda" if cuda else "cpu")
    geometry, near = geometry_of(model), Near(plan.sink, plan.window)
    shape, known = (geometry.layers, geometry.kv_heads), dict[bytes, float]()

    def scored(full: np.ndarray) -> float:
        if full.tobytes() not in known:  # all runs share full, none and the random draws
            known[full.tobytes()] = score(model, held, full, near)
        return known[full.tobytes()]

    for one in sets(sparsities, given.seeds):
        if one.name in summary or time.time() > end:
            continue
        trainer: PruLong | Duo
        if one.sparsity is not None:
            options = PruLongOptions(one.sparsity, plan.steps, one.seed, plan.sink, plan.window)
            trainer, rows, batch = PruLong(model, shape, options, World(0, 1)), data, plan.rows
        else:
            duo_options = DuoOptions(plan.duo_steps, one.seed, plan.sink, plan.window)
            trainer, rows, batch = Duo(model, shape, duo_options, World(0, 1)), duo_data, plan.duo_rows
        out = given.out / Path(name).name / one.name
        # Another seed reads the same rows in another order.
        order = np.random.default_rng(one.seed).permutation(len(rows))
        source = Written(lambda i, rows=rows, order=order: rows[order[i % len(rows)]])  # type: ignore[misc]
        said = {"kind": "recall's documents" if name == "recall" else "books", "length": plan.length}
        how = RunOptions(
            out, batch, save_every=50, log_every=10, resume=(out / NAME).is_file(), data=said, model_name=name,
            revision=loaded.revision, checkpointing=plan.length > 4096,
        )  # fmt: skip
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.time()

        def stop(numbers: dict[str, float]) -> None:
            if time.time() > end:
                raise TimeoutError

        try:
            gates = train_heads(trainer, source, how, stop)
        except TimeoutError:
            print(f"{name} {one.name}: cut by --minutes, call again to go on", flush=True)
            return
        wanted = sparsities if one.sparsity is None else [one.sparsity]
        tokens = trainer.options.steps * batch * plan.length
        peak = torch.cuda.max_memory_allocated() if cuda else None
        summary[one.name] = {
            "seconds": round(time.time() - began, 1), "tokens": tokens, "peak_bytes": peak,
            "last": gates.training["last"], "device": gates.training["device"], "nll": judge(gates, wanted, scored),
        }  # fmt: skip
        write_whole(summary_path, json.dumps(summary, indent=1) + "\n")
        print(name, one.name, json.dumps(summary[one.name]["nll"]), f"{summary[one.name]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
