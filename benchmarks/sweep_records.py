"""The sweeps behind the published figures: quality against footprint of the shipped model, SmolLM2 and Qwen2.5-Coder.

    python benchmarks/sweep_records.py --data FOLDER --out DIR            # everything; goes on where it was
    python benchmarks/sweep_records.py --data FOLDER --out DIR --cost     # one small cell per sweep: seconds a sample
    python benchmarks/sweep_records.py --data FOLDER --out DIR --sweeps qwen05 --model qwen2.5-coder-0.5b-instruct.gguf

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
from dataclasses import dataclass
from pathlib import Path

from kvfoot.cli.app import main as kvfoot
from kvfoot.evaluate.drive import prepare, work
from kvfoot.evaluate.export import read
from kvfoot.evaluate.store import Store
from kvfoot.evaluate.sweep import Sweep

METHODS = "full,streaming,snapkv,pyramidkv,h2o,tova,keynorm,adakv,random"
PATCHED = "full,streaming,snapkv,snapkv:patch=true,pyramidkv,h2o,tova,keynorm,adakv,random"
KEEPS = "0.9,0.7,0.5,0.3,0.15"
CHUNKED = "0.9,0.7,0.5,0.4,0.3"
"""Sinks and window of 64 fit into a chunk of 256 from 0.25 on."""
ABLE = 0.6
"""Full attention's score above which a loss can be measured."""


@dataclass(frozen=True)
class Plan:
    """A sweep: its tasks are tried with full attention first. samples: of a cell."""

    model: str
    tasks: str
    lengths: str
    samples: int
    evict: str
    chunk: str = "512"
    methods: str = METHODS
    keeps: str = KEEPS


RECALL = "keys4,keys16,json-numbers,variables,chain,labels,passkey,multivalue,multiquery"
NEEDLES = "niah_single_1,niah_single_2,niah_multikey_1,passkey_noise"
SWEEPS = {
    "recall": Plan("recall", RECALL, "2K", 200, "post"),
    "recall-chunk": Plan("recall", "keys4,keys16,json-numbers,chain", "1K", 200, "chunk", "256", PATCHED, CHUNKED),
    "smollm2": Plan("smollm2", f"{NEEDLES},perplexity", "1K,2K", 50, "post"),
    "smollm2-chunk": Plan("smollm2", f"{NEEDLES},perplexity", "1K", 50, "chunk", "256", PATCHED, CHUNKED),
    "qwen05": Plan("qwen05", f"{NEEDLES},niah_multikey_2,json_kv_numbers,json_kv,icl,perplexity", "1K,2K", 50, "post"),
    "qwen05-chunk": Plan(
        "qwen05", f"{NEEDLES},json_kv_numbers,icl,perplexity", "1K", 50, "chunk", "256", PATCHED, CHUNKED
    ),
}
"""kvfoot-recall begins its answers itself (docs/tasks.md). qwen05: Qwen2.5-Coder-0.5B-Instruct, a file: --model."""


def command(name: str, args: argparse.Namespace, tasks: str, methods: str, samples: int, out: Path) -> list[str]:
    plan = SWEEPS[name]
    text = f"eval --model {args.model or plan.model} --tasks {tasks} --methods {methods}"
    text += f" --lengths {args.lengths or plan.lengths} --evict {plan.evict} --chunk {plan.chunk}"
    knob = f"--knob keep={plan.keeps}" if methods != "full" else ""
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
    call(command(name, args, SWEEPS[name].tasks, "full", args.samples or 20, folder))
    scores: dict[tuple[str, int], list[float]] = {}
    for r in read(folder):
        scores.setdefault((r.cell.task, r.cell.length), []).append(r.score)
    means = {key: sum(x) / len(x) for key, x in scores.items()}
    for (task, length), mean in sorted(means.items()):
        print(f"{name} {task} {length}: {mean:.3f}{'' if mean > ABLE else ': at most ' + str(ABLE)}")
    none = {"perplexity"}  # a likelihood has no such floor
    fit = {t for t, _ in means if all(m > ABLE for (task, _), m in means.items() if task == t)}
    return [t for t in SWEEPS[name].tasks.split(",") if t in fit | none]


def cost(name: str, args: argparse.Namespace) -> None:
    """Seconds a sample, and the share that is not the model's: the sweep's first task, two samples of every cell."""
    plan = SWEEPS[name]
    lengths = (int(args.lengths or 1024),)
    knobs = {"keep": tuple(map(float, plan.keeps.split(",")))}
    sweep = Sweep(
        args.model or plan.model, (plan.tasks.split(",")[0],), tuple(plan.methods.split(",")), knobs, lengths,
        samples=2, chunk=int(plan.chunk), evict=(plan.evict,), data=str(args.data), device=args.device,
    )  # fmt: skip
    bench = prepare(sweep)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        began, cpu = time.perf_counter(), time.process_time()
        worker = work(bench, store)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        count = len(store.results())
        store.close()
    found = {"sweep": name, "evict": plan.evict, "length": lengths[0], "cells": len(bench.cells), "samples": count}
    found |= {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "s_per_sample": round(wall / count, 4)}
    print(json.dumps(found | {"bookkeeping": round(1 - worker.spent / wall, 4)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", default=Path("out"), type=Path)
    parser.add_argument("--sweeps", default=",".join(name for name in SWEEPS if not name.startswith("qwen")))
    parser.add_argument("--model", help="a folder or file instead of the sweep's own model")
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
        plan, export = SWEEPS[name], ["--export", f"results/{name}.json.gz"]
        call(command(name, args, ",".join(tasks), plan.methods, args.samples or plan.samples, out) + export)
        call(["critical", str(out)])


if __name__ == "__main__":
    main()
