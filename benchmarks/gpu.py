"""The GPU's cases in the order of their importance, a record each: speed and memory at the shape of Llama-3.1-8B.

    python benchmarks/gpu.py                        # an H100 80GB: about nine minutes, into results/gpu
    python benchmarks/gpu.py --only full-128k,capacity --again
    python benchmarks/gpu.py --shape tiny           # the same cases, a 64th as long, on a CPU: into out/gpu-tiny

A case that has a record is not run again (--again: it is), so a run that --minutes ended goes on where it was. A case
that fails leaves its traceback in NAME.error.txt and the next one is run; the exit code is then 1. --table prints what
the records say. Weights are random; what a record's entries are, it says itself (bench/synthetic.py).
"""

import argparse
import gc
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kvfoot import Engine
from kvfoot.bench import memory, shapes
from kvfoot.bench.capacity import SHARE, Filling, capacity
from kvfoot.bench.decode import Decoding, decode
from kvfoot.bench.eviction import Evicting, eviction
from kvfoot.bench.measure import copy_bandwidth, product_rate
from kvfoot.bench.prefill import Reading, prefill
from kvfoot.bench.record import BenchRecord
from kvfoot.bench.variant import Variant

LLAMA = "llama-3.1-8b"


@dataclass(frozen=True)
class Scale:
    """Sizes of a run. k: tokens that "1K" stands for; sink, window: of streaming heads; observers: SnapKV's window."""

    k: int = 1024
    chunk: int = 8192
    sink: int = 128
    window: int = 1024
    observers: int = 64
    kv_memory: int | float = SHARE
    steps: int = 24
    rounds: int = 5
    warm: int = 24


SCALES = {
    "tiny": Scale(k=16, chunk=256, sink=2, window=16, observers=8, kv_memory=6 << 20, steps=12, rounds=1, warm=12)
}
"""Any other shape has the sizes of Llama's."""


@dataclass(frozen=True)
class Case:
    """seconds: what it is expected to take on an H100; it is not begun with less time left."""

    name: str
    bench: str
    what: Any
    seconds: int


def cases(s: Scale) -> list[Case]:
    """By importance: the table of decode steps first."""
    full = Variant(chunk=s.chunk)
    snapkv = Variant("snapkv", {"window": s.observers}, "0.12", evict="chunk", chunk=s.chunk)
    roles = {"roles": "random", "sparsity": 0.7, "sink": s.sink, "window": s.window}
    heads = Variant("heads", roles, chunk=s.chunk)
    fixed = {"schedule": "fixed", "every": 12}
    fused = Variant("refreshkv", fixed, chunk=s.chunk)
    scored = Variant("refreshkv", fixed | {"mode": "score_only"}, chunk=s.chunk)
    h2o, streaming = (Variant(name, {}, "0.12", chunk=s.chunk) for name in ("h2o", "streaming"))

    def step(name: str, k: int, *variants: Variant, batch: int = 1, beside: bool = False, seconds: int = 20) -> Case:
        what = Decoding(variants, k * s.k, batch, s.steps, s.rounds, s.warm, True, beside)
        return Case(name, "decode", what, seconds)

    return [
        step("full-128k", 128, full, beside=True, seconds=40),
        step("keep12-128k-b24", 128, snapkv, batch=24, seconds=40),
        step("heads30-128k", 128, heads),
        step("keep12-128k", 128, snapkv),
        step("full-32k-b8", 32, full, batch=8, seconds=30),
        step("full-8k", 8, full, beside=True),
        step("fused-8k", 8, *(replace(full, fuse=n) for n in (0, 1, 2, 3)), seconds=19),
        Case("prefill-128k", "prefill", Reading((full, heads, snapkv), 128 * s.k, 1, 16 * s.k), 75),
        Case("capacity-128k", "capacity", Filling((snapkv, full), 128 * s.k, 12, 3, s.warm, s.kv_memory), 60),
        step("refreshkv-128k", 128, full, fused, beside=True, seconds=40),
        step("refreshkv-32k-b8", 32, full, fused, scored, batch=8, seconds=60),
        Case("eviction-128k", "eviction", Evicting(snapkv, 128 * s.k), 20),
        step("h2o-128k", 128, h2o, streaming, snapkv, seconds=25),
        step("refreshkv-scores-128k", 128, full, scored, seconds=30),
        step("transformers-32k", 32, full, snapkv, beside=True, seconds=20),
    ]


class Runs:
    """All cases on one model, which is made once; the hardware's rates are measured once."""

    def __init__(self, args: argparse.Namespace):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kind = torch.bfloat16 if device.type == "cuda" else torch.float32
        backend = args.backend or ("triton" if device.type == "cuda" else "sdpa")
        weights = shapes.weight_bytes(shapes.build(args.shape, kind, "meta"))
        memory.require({"weights": weights}, device)
        self.engine = Engine(shapes.build(args.shape, kind, device), name=args.shape, backend=backend)
        self.copy, self.product = copy_bandwidth(device), product_rate(device, kind)
        gc.collect()
        self.shape, self.out = args.shape, args.out

    def run(self, case: Case) -> None:
        """Raises what the case raises."""
        tell = lambda line: print(f"  {line}", flush=True)  # noqa: E731
        measured: dict[str, Callable[[], dict[str, Any]]] = {
            "decode": lambda: decode(self.engine, case.what, tell, self.copy),
            "capacity": lambda: capacity(self.engine, case.what, tell, self.copy),
            "prefill": lambda: prefill(self.engine, case.what, tell, self.product),
            "eviction": lambda: eviction(self.engine, case.what, tell),
        }
        figures = measured[case.bench]()
        words = ["python", "benchmarks/gpu.py", "--only", case.name]
        words += [] if self.shape == LLAMA else ["--shape", self.shape]
        record = BenchRecord.of(case.bench, shlex.join(words), self.engine, case.what.settings(), figures)
        record.save(self.out / f"{case.name}.json")


def summary(folder: Path, names: list[str]) -> str:
    """The records as a Markdown table."""
    lines = ["| case | side | ms | roofline | ratio | tokens/s |", "|---|---|---|---|---|---|"]
    for name in names:
        path = folder / f"{name}.json"
        if not path.is_file():
            continue
        figures = BenchRecord.from_json(path.read_text(encoding="utf-8")).figures
        if "sides" not in figures:
            ms = f"{figures['with_ms']:.2f} / {figures['without_ms']:.2f}"
            lines.append(f"| {name} | with / without | {ms} | | cost {figures['cost']:.1%} | |")
            continue
        for side, row in figures["sides"].items():
            more = f" ({row['sequences']} sequences)" if "sequences" in row else ""
            cells = f"{row['ms']:.3f} | {row['roofline_ms']:.3f} | {row['ratio']:.2f} | {row['tokens_per_second']:.1f}"
            lines.append(f"| {name} | {side}{more} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default=LLAMA, help="as in kvfoot bench")
    parser.add_argument("--minutes", type=float, default=9, help="no case is begun that would not end within them")
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    parser.add_argument("--again", action="store_true", help="cases with a record or an error too")
    parser.add_argument("--backend", help="default: triton on a GPU, sdpa on a CPU")
    parser.add_argument("--out", type=Path, help="folder of records")
    parser.add_argument("--table", action="store_true", help="run nothing, print what the records say")
    args = parser.parse_args()
    began = time.monotonic()
    every = cases(SCALES.get(args.shape, Scale()))
    args.out = args.out or Path("results/gpu" if args.shape == LLAMA else f"out/gpu-{args.shape}")
    names = [name for name in args.only.split(",") if name] or [case.name for case in every]
    unknown = set(names) - {case.name for case in every}
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(c.name for c in every)}")
    if args.table:
        print(summary(args.out, names))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    runs, failed = None, False
    for case in every:
        ends = (args.out / f"{case.name}.json", args.out / f"{case.name}.error.txt")
        if case.name not in names or (not args.again and any(end.exists() for end in ends)):
            continue
        left = 60 * args.minutes - (time.monotonic() - began)
        if left < case.seconds:
            print(f"-- {case.name}: not begun, {left:.0f} s are left of {args.minutes:g} minutes", flush=True)
            continue
        if runs is None:
            runs = Runs(args)
        print(f"-- {case.name}", flush=True)
        start = time.monotonic()
        try:
            runs.run(case)
            ends[1].unlink(missing_ok=True)
        except Exception:  # the GPU is scarce: what fails is kept as it is said, and the other cases are run
            failed = True
            ends[1].write_text(traceback.format_exc(), encoding="utf-8")
            print(traceback.format_exc(), flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"-- {case.name}: {time.monotonic() - start:.1f} s", flush=True)
    print(summary(args.out, names))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
