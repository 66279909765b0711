"""The sweeps behind the published figures: quality against footprint of the shipped model and of SmolLM2.

    python benchmarks/sweep_records.py --data FOLDER --out DIR            # everything; goes on where it was
    python benchmarks/sweep_records.py --data FOLDER --out DIR --cost     # one small cell per model: seconds a sample

FOLDER has books/ and words/. Each sweep is one `kvfoot eval`, printed before it runs, resumed like any other; its
results go to DIR/NAME and, compact, to results/NAME.json.gz. Full attention is run alone first (`--scores`: nothing
else): tasks where it scores 0.6 or less at one of the lengths are named and left out of the sweep. --tasks overrides.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

from kvfoot.cli.app import main as kvfoot
from kvfoot.evaluate.drive import prepare, work
from kvfoot.evaluate.export import read
from kvfoot.evaluate.store import Store
from kvfoot.evaluate.sweep import Sweep

METHODS = "full,streaming,snapkv,snapkv:patch=true,pyramidkv,h2o,tova,keynorm,adakv,random"
CHUNKED = "--evict chunk --chunk 512"
KNOB = "--knob keep=0.9,0.7,0.5,0.3,0.15"
ABLE = 0.6
"""Full attention's score above which a loss can be measured."""
SWEEPS = {
    "recall": (
        "recall",
        "passkey,keys4,keys16,multivalue,json-numbers,variables,chain,table,niah_single_2:question,niah_multikey_1:question",
        "2K,4K",
        200,
    ),
    "smollm2": ("smollm2", "niah_single_1,niah_single_2,niah_multikey_1,passkey_noise,perplexity", "1K,2K", 50),
}
"""Sweep: model, tasks to try, lengths, samples of a cell. kvfoot-recall begins its answers itself (docs/tasks.md)."""


def command(name: str, args: argparse.Namespace, tasks: str, methods: str, samples: int, out: Path) -> list[str]:
    model, _, lengths, _ = SWEEPS[name]
    text = f"eval --model {model} --tasks {tasks} --methods {methods} --lengths {args.lengths or lengths} {CHUNKED}"
    knob = KNOB if methods != "full" else ""
    more = f"{knob} --samples {samples} --data {args.data} --device {args.device} --workers {args.workers} --out {out}"
    return shlex.split(f"{text} {more} {args.more}")


def call(arguments: list[str]) -> None:
    print("kvfoot", shlex.join(arguments), flush=True)
    code = kvfoot(arguments)
    if code:
        sys.exit(code)


def able(name: str, args: argparse.Namespace) -> list[str]:
    """Tasks of a sweep that full attention can do, by a sweep of it alone."""
    folder = args.out / f"{name}-full"
    call(command(name, args, SWEEPS[name][1], "full", args.samples or 20, folder))
    scores: dict[tuple[str, int], list[float]] = {}
    for r in read(folder):
        scores.setdefault((r.cell.task, r.cell.length), []).append(r.score)
    means = {key: sum(x) / len(x) for key, x in scores.items()}
    for (task, length), mean in sorted(means.items()):
        print(f"{name} {task} {length}: {mean:.3f}{'' if mean > ABLE else ': at most ' + str(ABLE)}")
    none = {"perplexity"}  # a likelihood has no such floor
    fit = {t for t, _ in means if all(m > ABLE for (task, _), m in means.items() if task == t)}
    return [t for t in SWEEPS[name][1].split(",") if t in fit | none]


def cost(name: str, args: argparse.Namespace) -> None:
    """Seconds a sample, and the share that is not the model's: the sweep's first task, two samples of every cell."""
    model, tasks, _, _ = SWEEPS[name]
    for evict in ("post", "chunk"):
        methods = tuple(m for m in METHODS.split(",") if evict == "chunk" or "patch" not in m)
        lengths = (int(args.lengths or 1024),)
        knobs = {"keep": (0.9, 0.7, 0.5, 0.3, 0.15)}
        sweep = Sweep(
            model, (tasks.split(",")[0],), methods, knobs, lengths, samples=2, evict=(evict,), data=str(args.data),
            device=args.device,
        )  # fmt: skip
        bench = prepare(sweep)
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            began, cpu = time.perf_counter(), time.process_time()
            worker = work(bench, store)
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            count = len(store.results())
            store.close()
        found = {"sweep": name, "evict": evict, "length": lengths[0], "cells": len(bench.cells), "samples": count}
        found |= {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "s_per_sample": round(wall / count, 4)}
        print(json.dumps(found | {"bookkeeping": round(1 - worker.spent / wall, 4)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", default=Path("out"), type=Path)
    parser.add_argument("--sweeps", default=",".join(SWEEPS))
    parser.add_argument("--samples", type=int, help="per cell (default: as listed)")
    parser.add_argument("--tasks", help="instead of those that full attention can do")
    parser.add_argument("--lengths")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--more", default="", help="further options of kvfoot eval, such as --dtype bfloat16")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--scores", action="store_true", help="full attention alone")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.sweeps.split(","):
        if args.cost:
            cost(name, args)
            continue
        tasks = args.tasks.split(",") if args.tasks else able(name, args)
        if args.scores:
            continue
        if not tasks:
            print(f"{name}: full attention can do none of its tasks")
            continue
        out = args.out / name
        samples = args.samples or SWEEPS[name][3]
        call([*command(name, args, ",".join(tasks), METHODS, samples, out), "--export", f"results/{name}.json.gz"])
        call(["critical", str(out)])


if __name__ == "__main__":
    main()
