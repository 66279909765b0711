"""Gates judged by tasks: at each sparsity PruLong, DuoAttention, random heads and all-streaming heads, one footprint.

Random heads are as many as the trained ones. Where no head is full, all get a longer window instead: the one whose
streaming heads hold, over the prompt, as many pairs as the others' full and streaming heads together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from kvfoot.core.files import write_whole
from kvfoot.core.roles import full_heads
from kvfoot.engine.engine import Engine
from kvfoot.evaluate.drive import prepare, work
from kvfoot.evaluate.store import Store
from kvfoot.evaluate.sweep import Sweep

TASKS = {
    "recall": "keys4,keys16,json-numbers,variables,chain",
    "": "niah_single_1,niah_single_2,niah_multikey_1,passkey_noise,icl,perplexity",
}
"""By model; "" is any other. Development side, on which nothing was trained."""
CHUNK = 512
RANDOM = 3
"""Draws of random heads."""


class Side(NamedTuple):
    """What is compared: a label and `kvfoot eval`'s text of the method."""

    label: str
    method: str


def pairs(length: int, hold: int) -> int:
    """Of a head that holds `hold` entries between chunks, over a prompt: specs of 2506.17121, 1.2."""
    starts = range(0, length, CHUNK)
    sizes = [min(CHUNK, length - a) for a in starts]
    return sum(n * (n + 1) // 2 + n * min(a, hold) for a, n in zip(starts, sizes, strict=True))


def matched(length: int, hold: int, full: int, heads: int) -> int:
    """Entries a head holds where all stream, with as many pairs as `full` full heads and the rest of `hold`."""
    wanted = full * pairs(length, length) + (heads - full) * pairs(length, hold)
    low, high = hold, length
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if heads * pairs(length, middle) >= wanted else (middle + 1, high)
    return low


def sides(
    found: dict[str, Path], sparsities: list[float], heads: int, length: int, near: tuple[int, int]
) -> list[Side]:
    """found: heads files by run; those of PruLong are taken at their own sparsity, DuoAttention's at each."""
    sink, window = near
    kept = f"sink={sink}:window={window}"
    made = [Side("full", "full"), Side("streaming", f"heads:roles=streaming:{kept}")]
    for s in sparsities:
        for run, file in sorted(found.items()):
            if run.startswith("duo") or run == f"prulong-{s:g}" or run.startswith(f"prulong-{s:g}-"):
                name = run if run.startswith("prulong") else f"{run}-{s:g}"
                made.append(Side(name, f"heads:file={file}:sparsity={s:g}:{kept}"))
        made += [
            Side(f"random-{s:g}-{seed}", f"heads:roles=random:sparsity={s:g}:seed={seed}:{kept}")
            for seed in range(RANDOM)
        ]
        longer = matched(length, sink + window, full_heads(heads, s), heads) - sink
        made.append(Side(f"streaming-{s:g}", f"heads:roles=streaming:sink={sink}:window={longer}"))
    return made


def check_tasks(engine: Engine, tasks: str, length: int, samples: int, data: Path) -> None:
    """Raises UsageError for tasks that are unknown or do not fit, before any training."""
    names = tuple(tasks.split(","))
    prepare(
        Sweep(engine.name, names, ("full",), lengths=(length,), samples=samples, chunk=CHUNK, data=str(data)), engine
    )


def judge_tasks(
    engine: Engine,
    found: dict[str, Path],
    out: Path,
    *,
    sparsities: list[float],
    tasks: str,
    length: int,
    samples: int,
    data: Path,
    near: tuple[int, int],
    end: float,
) -> bool:
    """Into out/results.sqlite, and out/tasks.json: score and footprint of every side. -> whether all of it was run.

    Raises UsageError. Stops at `end` (time.time()); called again it goes on.
    """
    made = sides(found, sparsities, engine.geometry.rows, length, near)
    sweep = Sweep(
        engine.name, tuple(tasks.split(",")), tuple(side.method for side in made), lengths=(length,), samples=samples,
        chunk=CHUNK, data=str(data),
    )  # fmt: skip
    bench = prepare(sweep, engine)
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out)
    done = True
    try:
        work(bench, store, _until(end))
    except TimeoutError:
        done = False
    finally:
        results = store.results()
        store.close()
    labels = {cell.key: made[i % len(made)].label for i, (cell, _) in enumerate(bench.cells)}
    table: dict[str, dict[str, Any]] = {}
    for result in results:
        label = labels.get(result.cell.key)
        if label is not None:
            row = table.setdefault(label, {}).setdefault(result.cell.task, {"scores": [], "kv": []})
            row["scores"].append(result.score)
            row["kv"].append(result.record.footprint.kv)
    whole = {label: {task: _numbers(row) for task, row in each.items()} for label, each in table.items()}
    said = {
        "length": length,
        "chunk": CHUNK,
        "samples": samples,
        "finished": done,
        "sides": dict(made),
        "scores": whole,
    }
    write_whole(out / "tasks.json", json.dumps(said, indent=1) + "\n")
    for label, each in whole.items():
        told = ", ".join(f"{task} {x['score']:.3f}" for task, x in each.items())
        print(f"{label}: kv {mean(x['kv'] for x in each.values()):.3f}; {told}", flush=True)
    return done


def _numbers(row: dict[str, list[float]]) -> dict[str, float]:
    """Mean score with its standard error, mean footprint, samples."""
    scores = row["scores"]
    error = stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    return {"score": mean(scores), "error": error, "kv": mean(row["kv"]), "samples": len(scores)}


def _until(end: float) -> Callable[[Any], None]:
    def tell(queue: Any) -> None:
        if time.time() > end:
            raise TimeoutError

    return tell
