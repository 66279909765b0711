"""The order of RefreshKV's paper on a trained model: full <= every 5 <= every 10 <= never refreshed.

    python benchmarks/reader_order.py --data DATA --samples 8 --out results/reader_order.json

Acceptance test 11 of the specification, which random weights cannot pass: kvfoot-recall writes chains of keys from a
context of `length` tokens, teacher-forced token by token for `steps` tokens, K = length / 8. "never" is the paper's
SnapKV: window 1, max-pooling 7, maximum over a group, held at K entries as new ones come. Per method: nats a token, the
difference to full attention with its 95 % interval (paired, Student's t over contexts), and that difference per 16
positions. Then the same, every 5 steps, with the full cache in fewer bits or its values on the host: `bytes` and `host`
are the footprint's, over the whole run. The command fails (exit code 1) where the means are not in that order, or where
the loss of "never" does not grow faster over the positions than that of "every 5".
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from reader_tables import BUCKET, halfwidth, likelihood, shown

from kvfoot import Engine
from kvfoot.bench.record import command_line
from kvfoot.core.registry import method as find_method
from kvfoot.engine.account import device, packages
from kvfoot.evaluate.catalog import find
from kvfoot.evaluate.encode import ask, counter, without_template
from kvfoot.evaluate.sweep import Variant

KEEP = 0.125
ORDER: dict[str, dict[str, Any] | None] = {
    "full": None,
    "every 5": {"every": 5},
    "every 10": {"every": 10},
    "never": {"similarity": -2, "max_gap": None},
}
STORED: dict[str, dict[str, Any]] = {
    "8 bits": {"store": 8},
    "4 bits": {"store": 4},
    "score_only": {"mode": "score_only"},
    "values on host": {"mode": "score_only", "values": "host"},
    "4 bits on host": {"mode": "score_only", "values": "host", "store": 4},
}
"""Every 5 steps as well: what is stored of the full cache, where, and what that does to the answer."""


def slope(curve: list[float]) -> float:
    """Least squares, nats per bucket."""
    middle, average = (len(curve) - 1) / 2, mean(curve)
    return sum((i - middle) * (x - average) for i, x in enumerate(curve)) / sum(
        (i - middle) ** 2 for i in range(len(curve))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="recall")
    parser.add_argument("--task", default="chain")
    parser.add_argument("--data", required=True, help="folder with books/, words/ and longproc/")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--similarity", type=float, default=0.57, help="as calibrated for recall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    engine, began = Engine.load(args.model), time.perf_counter()
    (task,) = find((args.task,), args.data)
    count = counter(engine.tokenizer)
    length = without_template(engine.tokenizer, args.length, None)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*ORDER, *STORED)}
    for index in range(args.samples):
        asked = ask(engine.tokenizer, task.sample(index, length, args.seed, count), task.metric, None, "before")
        if len(asked.reference) < args.steps:
            sys.exit(f"{args.task}: an answer of {len(asked.reference)} tokens, --steps {args.steps}: give fewer")
        tokens = asked.prompt + asked.reference[: args.steps]
        for name, rows in runs.items():
            variant, options = Variant(find_method("full")), (ORDER | STORED)[name]
            if options is not None:
                method = find_method("refreshkv", {"similarity": args.similarity} | options)
                variant = Variant(method, "keep", KEEP, None)
            rows.append(likelihood(engine, variant, tokens, args.steps, args.chunk))
            print(f"{index} {name:<14} {mean(rows[-1]['nll']):.4f} nats", flush=True)
    table = {}
    for name, rows in runs.items():
        pairs = zip(rows, runs["full"], strict=True)
        beyond = [[a - b for a, b in zip(x["nll"], y["nll"], strict=True)] for x, y in pairs]
        total = [mean(x) for x in beyond]
        curve = [mean(mean(x[s : s + BUCKET]) for x in beyond) for s in range(0, args.steps - BUCKET + 1, BUCKET)]
        strides = [r["stride"] for r in rows if r["stride"] is not None]
        row = table[name] = {
            "nats": mean(mean(r["nll"]) for r in rows),
            "beyond_full": mean(total),
            "half": halfwidth(total),
            "slope": slope(curve),
            "buckets": [round(x, 4) for x in curve],
            "stride": mean(strides) if strides else None,
        } | {key: mean(r[key] for r in rows) for key in ("read", "bytes", "host")}
        print(f"{name:<14} nats {row['nats']:.4f}  beyond full {shown(row['beyond_full'], row['half'])}  slope per 16 "
              f"{row['slope']:.4f}  read {row['read']:.3f}  bytes {row['bytes']:.3f}  host {row['host']:.3f}  "
              f"stride {row['stride'] or 0:.1f}")  # fmt: skip
    names = list(ORDER)
    ordered = all(table[a]["nats"] <= table[b]["nats"] for a, b in itertools.pairwise(names))
    grows = table["never"]["slope"] > table["every 5"]["slope"]
    print("in the paper's order" if ordered else "NOT in the paper's order", end="; ")
    print("the loss without refreshes grows faster" if grows else "the loss without refreshes does NOT grow faster")
    config = {k: v for k, v in vars(args).items() if k not in ("out", "data")}
    args.out.write_text(
        json.dumps(
            {
                "benchmark": "reader_order",
                "command": command_line("python benchmarks/reader_order.py", sys.argv[1:]),
                "config": config | {"revision": engine.revision, "dtype": str(engine.dtype)},
                "ordered": ordered,
                "grows": grows,
                "table": table,
                "seconds": round(time.perf_counter() - began, 1),
                "packages": packages(),
                "device": device(engine.device),
                "date": time.strftime("%Y-%m-%d"),
            },
            indent=1,
        )
        + "\n"
    )
    return 0 if ordered and grows else 1


if __name__ == "__main__":
    sys.exit(main())
