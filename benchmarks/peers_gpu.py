"""kvpress 0.5.5 on a GPU, kvfoot beside it: time per token and bytes held after a prompt of 32K, interleaved.

    python benchmarks/peers_gpu.py                          # the shape of Llama-3.1-8B, into results/gpu/peers.json
    python benchmarks/peers_gpu.py --shape tiny             # the same on a CPU, into out/gpu-tiny/peers.json

Every side reads the same random tokens (kvpress and transformers in one pass, as kvpress has it), then all decode in
rounds, one side after the other. Sides share the weights; kvpress' masks live in the model's modules, so that presses
that mask have modules of their own. Pairs keep equally many entries: SnapKV and AdaKV a quarter, with the options that
docs/kvpress.md aligns; DuoAttention the same random 30 % full heads on both sides, 128 sinks and 1024 recent entries
elsewhere (kvpress downloads its heads: they are given to it here).

kvpress wants transformers below 5.3, so this needs packages of its own before those of the GPU's machine. A folder of
wheels for Python 3.12 on x86-64 Linux (15 MB; torch, triton, numpy, pandas, pyarrow, peft, accelerate, requests,
huggingface_hub below 2, regex, xxhash, fsspec, six, rich, typer and psutil are expected there):

    mkdir .wheels
    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .wheels \\
        kvpress==0.5.5 transformers==5.2.0 tokenizers==0.22.2 cachetools==5.5.2 datasets==5.2.0 dill==0.4.1 \\
        multiprocess==0.70.19
    python -m pip wheel --no-deps -w .wheels fire==0.6.0 termcolor==3.3.0

and there, from the repository's root:

    python -m pip install --no-index --no-deps --target /tmp/peers .wheels/*.whl
    PYTHONPATH=/tmp/peers:src python benchmarks/peers_gpu.py
"""

import argparse
import copy
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import sides  # isort: skip  (imports kvpress, which has to come before kvfoot)
import kvpress
import torch
from aligned import ALIGNED

from kvfoot import Engine
from kvfoot.bench import memory, shapes
from kvfoot.bench.decode import row
from kvfoot.bench.measure import copy_bandwidth, wait
from kvfoot.bench.prefill import tokens_of
from kvfoot.bench.record import BenchRecord, command_line
from kvfoot.bench.sides import Ours, Side, Times, dense_bytes
from kvfoot.bench.table import table
from kvfoot.bench.variant import TRANSFORMERS, Variant
from kvfoot.cli.console import stdout

LLAMA = "llama-3.1-8b"
RATIO = 0.75


@dataclass(frozen=True)
class Sizes:
    """prompt: tokens; chunk: of kvfoot's prompt; sink, window: of streaming heads; observers: SnapKV's window."""

    prompt: int = 32 * 1024
    chunk: int = 8192
    sink: int = 128
    window: int = 1024
    observers: int = 64


class Given(kvpress.DuoAttentionPress):
    """DuoAttentionPress with heads that are given instead of downloaded."""

    def __init__(self, streaming: torch.Tensor, sink: int, recent: int):
        super().__init__(head_compression_ratio=float(streaming.float().mean()))
        self.given = streaming, sink, recent

    def post_init_from_model(self, model: Any) -> None:
        self.streaming_mask, self.sink_size, self.recent_size = self.given


class Theirs:
    """transformers, with a press or without."""

    def __init__(self, name: str, model: Any, press: Any, tokens: list[int]):
        self.name, self.times = name, Times()
        self.run = sides.Plain(model, press)
        self.token = int(self.run.prefill(tokens).argmax())
        self.held_bytes = self.run.held
        self.entries = sum(layer.keys.shape[2] for layer in self.run.cache.layers) / len(self.run.cache.layers)
        self.read: list[int] = []

    def decode(self, steps: int, measured: bool = True) -> None:
        wait(self.run.model.device)
        marks, read = [perf_counter()], []
        for _ in range(steps + 1):
            self.token = int(self.run.step(self.token).argmax())
            marks.append(perf_counter())
            read.append(self.run.held)
        if measured:
            self.times.add(marks)
            self.read += read[1:]

    def kv_bytes(self) -> float:
        """All that is stored: masked entries are read like others."""
        return sum(self.read) / len(self.read)

    def facts(self) -> dict[str, Any]:
        return {"held_bytes": self.held_bytes, "peak_bytes": self.run.peak, "entries_per_row": self.entries}

    def close(self) -> None:
        self.run.cache = None


def sharing(model: Any) -> Any:
    """The same weights in modules of their own."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def build(model: Any, s: Sizes, backend: str, decoded: int) -> tuple[Engine, list[Side]]:
    """All sides, their prompts read: transformers, then pairs of kvpress and kvfoot."""
    engine = Engine(sharing(model), name=model.name_or_path, backend=backend)
    g, tokens = engine.geometry, tokens_of(engine, s.prompt)
    found: list[Side] = [Theirs(TRANSFORMERS, sharing(model), None, tokens)]
    keep = f"{sides.count_of(s.prompt, RATIO)}/{s.prompt}"

    def pair(name: str, press: Any, variant: Variant) -> None:
        found.append(Theirs(f"kvpress {name}", sharing(model), press, tokens))
        ours = Ours(engine, variant, s.prompt, 1, decoded, synthetic=False)
        ours.name = f"kvfoot {ours.name}"
        found.append(ours)

    for aligned in (p for p in ALIGNED if p.method in ("snapkv", "adakv")):
        options = aligned.options | {"window": s.observers}
        scorer = {"window_size": s.observers}
        press = (
            sides.press_of(aligned.press, RATIO, aligned.press_options, aligned.scorer | scorer)
            if aligned.scorer is not None
            else sides.press_of(aligned.press, RATIO, aligned.press_options | scorer)
        )
        pair(aligned.press, press, Variant(aligned.method, options, keep, chunk=s.chunk))
    roles = {"roles": "random", "sparsity": 0.7, "sink": s.sink, "window": s.window}
    heads = Variant("heads", roles, chunk=s.chunk)
    streaming = torch.from_numpy(~heads.of(g).full(g)).to(engine.device)  # type: ignore[attr-defined]
    pair("DuoAttentionPress", Given(streaming, s.sink, s.window), heads)
    return engine, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default=LLAMA, help="as in kvfoot bench")
    parser.add_argument("--steps", type=int, default=16, help="decode steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=16)
    parser.add_argument("--backend", help="default: triton on a GPU, sdpa on a CPU")
    parser.add_argument("--out", type=Path, help="the record")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    s = Sizes() if args.shape != "tiny" else Sizes(512, 128, 2, 16, 8)
    out = args.out or Path("results/gpu" if args.shape == LLAMA else f"out/gpu-{args.shape}") / "peers.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    weights = shapes.weight_bytes(shapes.build(args.shape, kind, "meta"))
    dense = dense_bytes(shapes.geometry(args.shape), kind.itemsize, s.prompt)
    memory.require({"weights": weights, "caches": 7 * dense, "one layer's copies": dense}, device)
    model = shapes.build(args.shape, kind, device)
    model.name_or_path = args.shape
    decoded = args.warm + 1 + args.rounds * (args.steps + 1)
    bandwidth = copy_bandwidth(device)
    engine, live = build(model, s, args.backend or ("triton" if device.type == "cuda" else "sdpa"), decoded)
    for side in live:
        side.decode(args.warm, measured=False)
    for number in range(args.rounds):
        first = number % len(live)
        for side in [*live[first:], *live[:first]]:
            side.decode(args.steps)
            print(f"round {number + 1} of {args.rounds}: {side.name} {side.times.rounds[-1]:.2f} ms", flush=True)
    streamed = shapes.streamed_bytes(model)
    rows = {side.name: row(side, 1, streamed, bandwidth) for side in live}
    for line in rows.values():
        line["freed"] = 1 - line["held_bytes"] / dense
    settings = {"prompt": s.prompt, "ratio": RATIO, "steps": args.steps, "rounds": args.rounds, "warm": args.warm}
    settings["entries"] = "of a prompt of random tokens that every side read"
    figures = {"copy_bytes_per_second": bandwidth, "interleaved": True, "dense_bytes": dense, "sides": rows}
    command = command_line("python benchmarks/peers_gpu.py", sys.argv[1:])
    record = BenchRecord.of("decode", command, engine, settings, figures)
    replace(record, packages=record.packages | {"kvpress": version("kvpress")}).save(out)
    stdout().print(table(record))
    for name, line in rows.items():
        print(f"{name}: held {line['held_bytes'] / 1e6:.1f} MB, freed {line['freed']:.1%}")


if __name__ == "__main__":
    main()
