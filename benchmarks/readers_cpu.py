"""Decode of readers against full attention on a CPU, interleaved in one process: ratios, not seconds.

    python benchmarks/readers_cpu.py --model smollm2 --context 4096 --out results/readers_cpu.json

Every variant runs once per round, in an order that rotates; figures are medians over rounds, a variant's ratio that of
its own decode step to full attention's in the same round. The prompt is the demo's text, repeated to the context's
length; of a model without a tokenizer (shape:smollm2), random tokens. Prefill is read apart and not in the ratio.
"""

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import torch
from cpu import kvfoot_run, model_of

from kvfoot import Engine, __version__
from kvfoot.engine.account import device, packages

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "refreshkv every 5": {"method": "refreshkv", "options": {"every": 5}},
    "refreshkv every 10": {"method": "refreshkv", "options": {"every": 10}},
    "refreshkv fixed 10": {"method": "refreshkv", "options": {"every": 10, "schedule": "fixed"}},
    "refreshkv score_only": {"method": "refreshkv", "options": {"every": 5, "mode": "score_only"}},
    "refreshkv never": {"method": "refreshkv", "options": {"similarity": -2, "max_gap": None}},
    "quest": {"method": "quest", "keep": "0.125"},
    "snapkv keep=0.125": {"method": "snapkv", "keep": "0.125"},
}
DEFAULT = "full,refreshkv every 5,refreshkv every 10,refreshkv fixed 10,refreshkv score_only"


def prompt(model: Any, name: str, count: int) -> list[int]:
    if name.startswith("shape:"):
        drawn = torch.randint(10, model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(0))
        return drawn.tolist()
    from kvfoot.models.load import load

    text = (files("kvfoot") / "data" / "demo" / "alice-chapter-6.txt").read_text(encoding="utf-8")
    ids = load(name, device="cpu").tokenizer(text)["input_ids"]
    return (ids * (count // len(ids) + 1))[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--context", type=int, default=4096, help="prompt tokens")
    parser.add_argument("--steps", type=int, default=100, help="decode steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--similarity", type=float, help="of the dynamic variants (kvfoot calibrate refreshkv)")
    parser.add_argument("--variants", default=DEFAULT, help="or all")
    parser.add_argument("--out", help="JSON record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = list(VARIANTS) if args.variants == "all" else args.variants.split(",")
    chosen = ["full", *(name for name in chosen if name != "full")]
    engine = Engine(model_of(args.model, args.dtype), name=args.model)
    engine.model.generation_config.eos_token_id = None  # every variant decodes the same number of steps
    tokens = prompt(engine.model, args.model, args.context)
    how = {name: dict(VARIANTS[name]) for name in chosen}
    for name, one in how.items():
        if args.similarity is not None and name in ("refreshkv every 5", "refreshkv every 10", "refreshkv score_only"):
            one["options"] = one["options"] | {"similarity": args.similarity}
    decode: dict[str, list[float]] = {name: [] for name in chosen}
    ratios: dict[str, list[float]] = {name: [] for name in chosen}
    records: dict[str, Any] = {}
    for round_ in range(args.rounds + 1):  # the first round warms up
        now = {}
        for name in chosen[round_ % len(chosen) :] + chosen[: round_ % len(chosen)]:
            _, _, records[name] = kvfoot_run(engine, tokens, args.steps, how[name])
            now[name] = records[name].timings.decode_ms_per_token
            print(f"round {round_} {name:<24}{now[name]:>9.2f} ms", flush=True)
        if round_:
            for name, ms in now.items():
                decode[name].append(ms)
                ratios[name].append(ms / now["full"])
    rows = {}
    for name in chosen:
        sequence = records[name].sequences[0]
        strides = [s for s in sequence.strides if s is not None]
        rows[name] = {
            "decode_ms": statistics.median(decode[name]),
            "decode / full": statistics.median(ratios[name]),
            "lowest": min(ratios[name]),
            "highest": max(ratios[name]),
            "stride": statistics.mean(strides) if strides else None,
            "read": records[name].footprint.read,
        }
        row = rows[name]
        stride = f"{row['stride']:.1f}" if strides else "-"
        print(f"{name:<24}{row['decode_ms']:>9.2f} ms{row['decode / full']:>7.2f} of full, stride {stride}")
    if args.out:
        words = {k: v for k, v in vars(args).items() if k != "out" and v is not None}
        record = {
            "benchmark": "readers_cpu",
            "command": "python benchmarks/readers_cpu.py " + " ".join(f"--{k} {v!r}" for k, v in words.items()),
            "rows": rows,
            "ratios": ratios,
            "runs": {name: asdict(r) for name, r in records.items()},
            "packages": packages() | {"kvfoot": __version__},
            "device": device(torch.device("cpu")) | {"cores": os.cpu_count(), "system": platform.platform()},
            "date": time.strftime("%Y-%m-%d"),
        }
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
