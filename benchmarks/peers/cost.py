"""What kvpress frees and what it costs, beside kvfoot: bytes and time of the same methods, interleaved in one process.

    python benchmarks/peers/cost.py --model smollm2 --context 4096 --keep 0.5 --out results/peers.json

A round reads the prompt once with every variant, in an order that rotates, and then decodes all of them in step: token
by token, one variant after the other. Times are CPU time of one thread, which neighbours on the machine stretch least,
as ratios to plain transformers in the same round (prefill) or at the same step (decode); medians. The record has the
same ratios of elapsed time. "plain again" is the control: what it is off 1 is noise.

held: bytes after prefill, of kvpress the storages behind its cache, of kvfoot the pages owned (positions and page slack
included). peak: of kvpress the most when a layer had attended and was not yet compressed; of kvfoot the most pages.
Copies that live only within an operation are in neither.
"""

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Any

import sides
import torch
from record import write
from torch import Tensor

from kvfoot import Engine

PRESSES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "snapkv": ("SnapKVPress", {}, None),
    "pyramidkv": ("PyramidKVPress", {}, None),
    "tova": ("TOVAPress", {}, None),
    "keynorm": ("KnormPress", {}, None),
    "streaming": ("StreamingLLMPress", {}, None),
    "adakv": ("AdaKVPress", {}, {}),
}
OPTIONS: dict[str, dict[str, Any]] = {"keynorm": {"skip": 0}}
"""KnormPress skips no layer: with the paper's two, the bytes would not be comparable."""
CHUNK = 512
CHUNKED = ("snapkv", "adakv")
PLAIN = "transformers"

Build = Callable[[], Any]


def variants(model: Any, keep: Fraction) -> dict[str, Build]:
    """What is measured: name -> a fresh run. AdaKVPress gets a model of its own, since its mask lives in the model."""
    engine = Engine(copy.deepcopy(model))
    masked = copy.deepcopy(model)
    found: dict[str, Build] = {PLAIN: lambda: sides.Plain(model), "plain again": lambda: sides.Plain(model)}
    found["kvfoot full"] = lambda: sides.Ours(engine, "full", {}, None)
    ratio = float(1 - keep)
    for name, (press, options, scorer) in PRESSES.items():
        of = masked if name == "adakv" else model
        found[f"kvpress {press}"] = lambda of=of, p=press, o=options, s=scorer: sides.Plain(
            of, sides.press_of(p, ratio, o, s)
        )
        ours = OPTIONS.get(name, {})
        found[f"kvfoot {name}"] = lambda n=name, o=ours: sides.Ours(engine, n, o, keep)
        if name in CHUNKED:
            found[f"kvfoot {name}, evict=chunk"] = lambda n=name, o=ours: sides.Ours(engine, n, o, keep, "chunk", CHUNK)
    return found


@dataclass(frozen=True)
class Spent:
    """Seconds of CPU and elapsed."""

    cpu: float
    wall: float

    @classmethod
    def of(cls, work: Callable[[], Tensor]) -> tuple["Spent", int]:
        """What the work took, and the token of highest logit."""
        cpu, wall = time.process_time(), time.perf_counter()
        token = int(work().argmax())
        return cls(time.process_time() - cpu, time.perf_counter() - wall), token


def one_round(
    built: dict[str, Build], order: list[str], tokens: list[int], steps: int
) -> tuple[dict[str, Spent], list[dict[str, Spent]], dict[str, tuple[int, int]]]:
    """Every prefill, every decode step, and bytes: held after prefill, and the prefill's peak."""
    prefill: dict[str, Spent] = {}
    sizes: dict[str, tuple[int, int]] = {}
    live: dict[str, Any] = {}
    token: dict[str, int] = {}
    for name in order:
        run = live[name] = built[name]()
        prefill[name], token[name] = Spent.of(lambda run=run: run.prefill(tokens))
        sizes[name] = run.held, run.peak
        print(f"{name}: {prefill[name].cpu:.2f} s, elapsed {prefill[name].wall:.2f} s", file=sys.stderr, flush=True)
    decode = []
    for step in range(steps):
        first = step % len(order)
        each = {}
        for name in order[first:] + order[:first]:
            each[name], token[name] = Spent.of(lambda name=name: live[name].step(token[name]))
        decode.append(each)
    for run in live.values():
        if isinstance(run, sides.Ours):
            run.close()
    return prefill, decode, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--context", type=int, default=4096, help="prompt tokens")
    parser.add_argument("--keep", default="0.5", help="fraction kept; kvpress gets 1 - keep as its ratio")
    parser.add_argument("--steps", type=int, default=12, help="decode steps of a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", required=True, help="JSON record; other parts of it stay")
    args = parser.parse_args()
    from kvfoot.models.load import load

    torch.set_num_threads(1)
    began, load_before = time.perf_counter(), os.getloadavg()[0]
    model = load(args.model, dtype=args.dtype, device="cpu", on_event=print).model
    tokens = torch.randint(
        10, model.config.vocab_size, (args.context,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    built = variants(model, Fraction(args.keep))
    for name in (PLAIN, "kvfoot full"):  # warms up
        built[name]().prefill(tokens[:512])
    prefills, decodes, sizes = [], [], {}
    for index in range(args.rounds):
        names = list(built)
        shift = index * len(names) // args.rounds
        prefill, decode, sizes = one_round(built, names[shift:] + names[:shift], tokens, args.steps)
        prefills.append(prefill)
        decodes += decode
        print(f"round {index + 1} of {args.rounds}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    dense = sizes["kvfoot full"][0]
    rows = {}
    for name in built:
        held, peak = sizes[name]
        rows[name] = {
            "held_bytes": held,
            "peak_bytes": peak,
            "prefill / transformers": median(p[name].cpu / p[PLAIN].cpu for p in prefills),
            "decode / transformers": median(d[name].cpu / d[PLAIN].cpu for d in decodes),
            "prefill / transformers, elapsed": median(p[name].wall / p[PLAIN].wall for p in prefills),
            "decode / transformers, elapsed": median(d[name].wall / d[PLAIN].wall for d in decodes),
        }
    part = {
        "model": args.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "context": args.context,
        "keep": float(args.keep),
        "dense_bytes": dense,
        "rows": rows,
        "prefill_s": [{name: round(spent.cpu, 3) for name, spent in p.items()} for p in prefills],
        "decode_ms": {name: round(1e3 * median(d[name].cpu for d in decodes), 2) for name in built},
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
        "seconds": time.perf_counter() - began,
    }
    write(args.out, "cost", part)


if __name__ == "__main__":
    main()
