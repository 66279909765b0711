"""Readers against eviction at K = L / 8: perplexity of what follows a long text, and long outputs that look back.

    python benchmarks/reader_tables.py perplexity --model smollm2 --data DATA --length 4096 --samples 40 --out OUT.json
    python benchmarks/reader_tables.py tasks --model recall --data DATA --length 4096 --samples 40 --out OUT.json

perplexity: a passage of a held-out book, its last 256 tokens teacher-forced one by one behind the kept or read prompt;
the table has the perplexity, the difference to full attention in nats with its 95 % interval (paired, Student's t over
passages), and that difference per bucket of 16 positions: what grows with the length of the generation shows there.
tasks: answers written freely and greedily; the score is the share of steps before the first wrong one, with the mean's
95 % interval over samples. Both say what decoding read, over full attention, and the effective stride.

The file is written after every sample; a run of the same command goes on where it was cut.
"""

import argparse
import json
import random
import sys
import time
from math import exp, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from kvfoot import Engine
from kvfoot.bench.record import command_line
from kvfoot.core.registry import method as find_method
from kvfoot.core.results import Cell, SampleResult
from kvfoot.engine.account import device, packages
from kvfoot.engine.sampler import Sampling
from kvfoot.evaluate.answers import Lane, follow
from kvfoot.evaluate.catalog import find
from kvfoot.evaluate.sweep import Sweep, Variant
from kvfoot.evaluate.tasks.corpus import read_corpus
from kvfoot.evaluate.tasks.split import SIDES
from kvfoot.evaluate.worker import Job, Worker
from kvfoot.report.interval import interval, student

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "streaming": ("streaming", {}),
    "h2o": ("h2o", {}),
    "snapkv": ("snapkv", {}),
    "refreshkv every 5": ("refreshkv", {"every": 5}),
    "refreshkv every 10": ("refreshkv", {"every": 10}),
    "refreshkv fixed 10": ("refreshkv", {"every": 10, "schedule": "fixed"}),
    "refreshkv score_only 5": ("refreshkv", {"every": 5, "mode": "score_only"}),
    "quest": ("quest", {}),
    "refreshkv fixed 25": ("refreshkv", {"every": 25, "schedule": "fixed"}),
    "refreshkv fixed 50": ("refreshkv", {"every": 50, "schedule": "fixed"}),
    "refreshkv fixed 1": ("refreshkv", {"every": 1, "schedule": "fixed", "mode": "score_only"}),
    "refreshkv fixed 1 unpooled": ("refreshkv", {"every": 1, "schedule": "fixed", "mode": "score_only", "kernel": 1}),
    "refreshkv fixed 10 sinks": ("refreshkv", {"every": 10, "schedule": "fixed", "sink": 4}),
}
TABLE = list(VARIANTS)[:9]
DYNAMIC = ("refreshkv every 5", "refreshkv every 10", "refreshkv score_only 5")
BUCKET = 16


def variants(names: str, keep: float, similarity: float | None) -> dict[str, Variant]:
    found = {}
    for name in TABLE if names == "table" else ["full", *(n for n in names.split(",") if n != "full")]:
        method, options = VARIANTS[name]
        if similarity is not None and name in DYNAMIC:
            options = options | {"similarity": similarity}
        chosen = find_method(method, options)
        reads = chosen.category == "read"
        found[name] = Variant(chosen) if method == "full" else Variant(chosen, "keep", keep, None if reads else "post")
    return found


def decoded_share(passes: list[Any], prompt: int, rows: int) -> float:
    """What the passes after the prompt read, over full attention's."""
    read = dense = 0.0
    for p in passes:
        if p.seen >= prompt:
            read += p.pairs() if p.loaded is None else float(p.loaded.sum())
            read += 0 if p.scan is None else float(p.scan.sum()) / 2
            dense += rows * (p.n * (p.n + 1) / 2 + p.n * p.seen)
    return read / dense


@torch.inference_mode()
def likelihood(engine: Engine, variant: Variant, tokens: list[int], steps: int, chunk: int) -> dict[str, Any]:
    """Nats of the last `steps` tokens, each after the ones before it, and what they cost."""
    prompt = tokens[:-steps]
    plan = engine.plan(variant.method, variant.budget, len(prompt), chunk, steps)
    runner = engine.runner([plan], steps)
    sequence = runner.open(prompt, variant.method, plan, Sampling(), 0)
    lane = Lane(sequence, runner.prefill(sequence), [], tokens[-steps:], steps)
    follow(runner, [lane], chunk)
    strides, footprint = [s for s in sequence.trace.strides() if s != float("inf")], sequence.trace.footprint()
    found = {
        "nll": [round(x, 5) for x in lane.nll],
        "read": decoded_share(sequence.trace.passes, len(prompt), engine.geometry.rows),
        "kv": footprint.kv,
        "bytes": footprint.bytes,
        "host": footprint.host,
        "stride": mean(strides) if strides else None,
    }
    runner.cache.release(sequence.rows)
    return found


class Rows:
    """Results by variant and sample, on disk after each."""

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path, self.config = path, config
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            before = json.loads(path.read_text())
            if before["config"] != config:
                sys.exit(f"{path} is of another configuration: give another --out")
            self.rows = before["rows"]

    def has(self, name: str, index: int) -> bool:
        return str(index) in self.rows.get(name, {})

    def put(self, name: str, index: int, row: dict[str, Any]) -> None:
        self.rows.setdefault(name, {})[str(index)] = row
        self.save({})

    def save(self, more: dict[str, Any]) -> None:
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps({"config": self.config, "rows": self.rows} | more, indent=1) + "\n")
        draft.replace(self.path)


def halfwidth(values: list[float]) -> float | None:
    return student(len(values) - 1) * stdev(values) / sqrt(len(values)) if len(values) > 4 else None


def shown(value: float, half: float | None) -> str:
    return f"{value:.4f}" + ("" if half is None else f" ± {half:.4f}")


def perplexity(engine: Engine, args: argparse.Namespace, rows: Rows) -> dict[str, Any]:
    corpus = read_corpus(args.data, args.side)
    chosen = variants(args.variants, args.keep, args.similarity)
    for index in range(args.samples):
        rng = random.Random(f"reader_tables/{args.side}/{args.seed}/{index}")
        text = corpus.passage(rng, 7 * (args.length + args.steps))
        tokens = list(engine.tokenizer(text)["input_ids"])[: args.length + args.steps]
        assert len(tokens) == args.length + args.steps, "7 characters a token were too few"
        for name, variant in chosen.items():
            if not rows.has(name, index):
                row = likelihood(engine, variant, tokens, args.steps, args.chunk)
                rows.put(name, index, row)
                print(f"{index} {name:<24} ppl {exp(mean(row['nll'])):.3f}", flush=True)
    return {name: _perplexity_row(rows.rows, name) for name in chosen}


def _perplexity_row(rows: dict[str, Any], name: str) -> dict[str, Any]:
    own, full = rows[name], rows["full"]
    each = [mean(r["nll"]) for r in own.values()]
    beyond = [[a - b for a, b in zip(own[i]["nll"], full[i]["nll"], strict=True)] for i in own]
    total = [mean(x) for x in beyond]
    buckets = [
        {"from": s, "nats": mean(part), "half": halfwidth(part)}
        for s in range(0, len(beyond[0]), BUCKET)
        for part in [[mean(x[s : s + BUCKET]) for x in beyond]]
    ]
    strides = [r["stride"] for r in own.values() if r["stride"] is not None]
    return {
        "samples": len(each),
        "perplexity": exp(mean(each)),
        "nats_beyond_full": mean(total),
        "half": halfwidth(total),
        "buckets": buckets,
        "read": mean(r["read"] for r in own.values()),
        "kv": mean(r["kv"] for r in own.values()),
        "stride": mean(strides) if strides else None,
    }


def tasks(engine: Engine, args: argparse.Namespace, rows: Rows) -> dict[str, Any]:
    chosen = variants(args.variants, args.keep, args.similarity)
    names, own = list(chosen), list(chosen.values())
    sweep = Sweep(
        model=args.model, tasks=tuple(args.tasks.split(",")), methods=("full",), lengths=(args.length,),
        samples=args.samples, seed=args.seed, chunk=args.chunk, whole=True, data=args.data,
    )  # fmt: skip
    worker, table = Worker(engine, sweep), {}
    for task in find(sweep.tasks, args.data):
        cell = Cell(args.model, engine.revision, task.name, task.category, task.metric, args.length, "")
        for index in range(args.samples):
            wanted = {(c, index) for c, name in enumerate(names) if not rows.has(f"{task.name}: {name}", index)}

            def put(c: int, result: SampleResult, task: Any = task, index: int = index) -> None:
                record = result.record
                strides = [s for s in record.sequences[0].strides if s is not None]
                row = {
                    "score": result.score,
                    "nll": result.nll,
                    "tokens": result.figures.get("reference_tokens"),
                    "read": record.footprint.read,
                    "kv": record.footprint.kv,
                    "stride": mean(strides) if strides else None,
                }
                rows.put(f"{task.name}: {names[c]}", index, row)
                print(f"{index} {task.name} {names[c]:<24} {result.score:.3f}", flush=True)

            if wanted:
                worker.run(Job(task, args.length, [cell] * len(own), own, wanted), put)
        for name in names:
            scores = [r["score"] for r in rows.rows[f"{task.name}: {name}"].values()]
            got = list(rows.rows[f"{task.name}: {name}"].values())
            strides = [r["stride"] for r in got if r["stride"] is not None]
            table[f"{task.name}: {name}"] = {
                "samples": len(scores),
                "score": mean(scores),
                "interval": interval(scores),
                "read": mean(r["read"] for r in got),
                "kv": mean(r["kv"] for r in got),
                "stride": mean(strides) if strides else None,
            }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("perplexity", "tasks"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder with books/, words/ and longproc/")
    parser.add_argument("--length", type=int, default=4096, help="prompt tokens (perplexity), or of a whole sample")
    parser.add_argument("--steps", type=int, default=256, help="teacher-forced tokens (perplexity)")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--tasks", default="chain,path,table")
    parser.add_argument("--variants", default="table", help="names, separated by commas")
    parser.add_argument("--keep", type=float, default=0.125, help="K over L")
    parser.add_argument("--similarity", type=float, help="of the dynamic variants (kvfoot calibrate refreshkv)")
    parser.add_argument("--side", choices=SIDES[1:], default="dev", help="books (perplexity)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    engine = Engine.load(args.model, dtype=args.dtype, device=args.device)
    config = {k: v for k, v in vars(args).items() if k not in ("out", "samples", "device", "data")}
    config |= {"revision": engine.revision, "dtype": str(engine.dtype)}
    rows = Rows(args.out, config)
    began = time.perf_counter()
    table = perplexity(engine, args, rows) if args.part == "perplexity" else tasks(engine, args, rows)
    rows.save({
        "benchmark": "reader_tables",
        "command": command_line("python benchmarks/reader_tables.py", sys.argv[1:]),
        "table": table,
        "seconds": round(time.perf_counter() - began, 1),
        "packages": packages(),
        "device": device(engine.device),
        "date": time.strftime("%Y-%m-%d"),
    })  # fmt: skip
    for name, row in table.items():
        told = f"read {row['read']:.3f}  kv {row['kv']:.3f}" + (
            f"  stride {row['stride']:.1f}" if row["stride"] else ""
        )
        if args.part == "perplexity":
            first, last = row["buckets"][0]["nats"], row["buckets"][-1]["nats"]
            beyond = shown(row["nats_beyond_full"], row["half"])
            print(f"{name:<24} ppl {row['perplexity']:.3f}  nats {beyond}  first {first:.3f} last {last:.3f}  {told}")
        else:
            low, high = row["interval"]
            print(f"{name:<32} {row['score']:.3f} [{low:.3f}, {high:.3f}]  {told}")


if __name__ == "__main__":
    main()
