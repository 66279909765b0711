"""What kvpress frees and what it costs, beside kvfoot: bytes and time of the same methods, interleaved in one process.

    python benchmarks/peers/cost.py --model smollm2 --context 4096 --keep 0.5 --out results/peers.json
    python benchmarks/peers/cost.py --model random --context 8192 --methods snapkv,adakv --out results/peers.json

`random` is a small Llama in which attention is most of the work.
A round reads the prompt once with every variant, in an order that rotates, and then decodes all of them in step: token
by token, one variant after the other. Times are CPU time of one thread, which neighbours on the machine stretch least,
as ratios to plain transformers in the same round (prefill) or at the same step (decode); medians. The record has the
same ratios of elapsed time. "plain again" is the control: what it is off 1 is noise.

held: bytes after prefill, of kvpress the storages behind its cache, of kvfoot the pages owned (positions and page slack
included). peak: of kvpress the most when a layer had attended and was not yet compressed; of kvfoot the most pages,
beside which the model's own tensors hold the pass's keys and values while a layer attends.
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
from transformers import LlamaConfig, LlamaForCausalLM

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


def random_llama() -> Any:
    """4 layers, 8 heads, 2 KV heads of 64, fp32, random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def variants(model: Any, keep: Fraction, methods: list[str]) -> dict[str, Build]:
    """What is measured: name -> a fresh run. AdaKVPress gets a model of its own, since its mask lives in the model."""
    engine = Engine(copy.deepcopy(model))
    masked = copy.deepcopy(model)
    found: dict[str, Build] = {PLAIN: lambda: sides.Plain(model), "plain again": lambda: sides.Plain(model)}
    found["kvfoot full"] = lambda: sides.Ours(engine, "full", {}, None)
    ratio = float(1 - keep)
    for name in methods:
        press, options, scorer = PRESSES[name]
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


def row(
    name: str, sizes: tuple[int, int], prefills: list[dict[str, Spent]], decodes: list[dict[str, Spent]]
) -> dict[str, float]:
    """Bytes and ratios of a variant."""
    found: dict[str, float] = {"held_bytes": sizes[0], "peak_bytes": sizes[1]}
    for stage, every in (("prefill", prefills), ("decode", decodes)):
        found[f"{stage} / {PLAIN}"] = median(each[name].cpu / each[PLAIN].cpu for each in every)
        found[f"{stage} / {PLAIN}, elapsed"] = median(each[name].wall / each[PLAIN].wall for each in every)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="as in kvfoot, or `random`")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--context", type=int, default=4096, help="prompt tokens")
    parser.add_argument("--methods", default=",".join(PRESSES))
    parser.add_argument("--keep", default="0.5", help="fraction kept; kvpress gets 1 - keep as its ratio")
    parser.add_argument("--steps", type=int, default=12, help="decode steps of a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", required=True, help="JSON record; other parts of it stay")
    args = parser.parse_args()
    from kvfoot.models.load import load

    torch.set_num_threads(1)
    began, load_before = time.perf_counter(), os.getloadavg()[0]
    small = args.model == "random"
    model = random_llama() if small else load(args.model, dtype=args.dtype, device="cpu", on_event=print).model
    tokens = torch.randint(
        10, model.config.vocab_size, (args.context,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    built = variants(model, Fraction(args.keep), args.methods.split(","))
    for name in (PLAIN, "kvfoot full"):  # warms up
        built[name]().prefill(tokens[:512])
    prefills: list[dict[str, Spent]] = []
    decodes: list[dict[str, Spent]] = []
    for index in range(args.rounds):
        names = list(built)
        shift = index * len(names) // args.rounds
        prefill, decode, sizes = one_round(built, names[shift:] + names[:shift], tokens, args.steps)
        prefills.append(prefill)
        decodes += decode
        part = {
            "model": args.model,
            "dtype": str(model.dtype).removeprefix("torch."),
            "context": args.context,
            "keep": float(args.keep),
            "rounds": index + 1,
            "dense_bytes": sizes["kvfoot full"][0],
            "rows": {name: row(name, sizes[name], prefills, decodes) for name in built},
            "prefill_s": [{name: round(spent.cpu, 3) for name, spent in p.items()} for p in prefills],
            "decode_ms": {name: round(1e3 * median(d[name].cpu for d in decodes), 2) for name in built},
            "load_average": {"before": load_before, "after": os.getloadavg()[0]},
            "seconds": time.perf_counter() - began,
        }
        print(f"after round {index + 1} of {args.rounds}")
        write(args.out, "cost random" if small else "cost", part)


if __name__ == "__main__":
    main()
