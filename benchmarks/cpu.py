"""Prefill and decode of kvfoot against transformers' own generate, interleaved in one process: ratios, not seconds.

    python benchmarks/cpu.py --model smollm2 --context 4096 --out results/cpu.json

Every variant runs once per round, in an order that rotates; figures are medians over rounds. "transformers" is the
unmodified model with SDPA attention and DynamicCache, as `model.generate` runs it.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
from dataclasses import asdict
from typing import Any

import torch
from transformers import DynamicCache

from kvfoot import Engine, __version__
from kvfoot.bench import shapes
from kvfoot.engine.account import device, packages
from kvfoot.report.speed import speed_table

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "snapkv keep=0.25 post": {"method": "snapkv", "keep": "0.25"},
    "snapkv keep=0.25 chunk": {"method": "snapkv", "keep": "0.25", "evict": "chunk"},
    "adakv keep=0.25 post": {"method": "adakv", "keep": "0.25", "options": {"window": 64, "kernel": 5}},
    "adakv keep=0.25 chunk": {
        "method": "adakv",
        "keep": "0.25",
        "evict": "chunk",
        "options": {"window": 64, "kernel": 5},
    },
    "pyramidkv keep=0.25 post": {"method": "pyramidkv", "keep": "0.25"},
    "tova keep=0.25 post": {"method": "tova", "keep": "0.25"},
    "keynorm keep=0.25 post": {"method": "keynorm", "keep": "0.25"},
    "streamingllm keep=0.25 post": {"method": "streamingllm", "keep": "0.25"},
    "h2o keep=0.25 post": {"method": "h2o", "keep": "0.25"},
    "streaming keep=0.25 chunk": {"method": "streaming", "keep": "0.25", "evict": "chunk"},
}

STAGES = ("prefill", "decode")


def model_of(name: str, dtype: str) -> Any:
    """A model to load, or `shape:smollm2`: the same sizes with random weights, which nothing has to be fetched for."""
    from kvfoot.models.load import load

    if not name.startswith("shape:"):
        return load(name, dtype=dtype, device="cpu").model
    kind = getattr(torch, "bfloat16" if dtype == "auto" else dtype)
    return shapes.build(name.removeprefix("shape:"), kind, "cpu")


@torch.inference_mode()
def transformers_run(model: Any, tokens: list[int], steps: int) -> tuple[float, float]:
    """Seconds of prefill and of a decode step: what `generate` does, timed in two parts."""
    cache = DynamicCache(config=model.config)
    began = time.perf_counter()
    out = model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = out.logits[0, -1].argmax()
    prefill = time.perf_counter() - began
    each = []
    for _ in range(steps):
        began = time.perf_counter()
        out = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = out.logits[0, -1].argmax()
        token.item()
        each.append(time.perf_counter() - began)
    return prefill, statistics.median(each)


@torch.inference_mode()
def generate_run(model: Any, tokens: list[int], steps: int) -> float:
    """Seconds of `model.generate` as a whole, prompt and `steps` + 1 new tokens."""
    began = time.perf_counter()
    ids = torch.tensor([tokens])
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=steps + 1,
        min_new_tokens=steps + 1,
        do_sample=False,
        pad_token_id=0,
    )
    return time.perf_counter() - began


def kvfoot_run(engine: Engine, tokens: list[int], steps: int, options: dict[str, Any]) -> tuple[float, float, Any]:
    """The same two figures for the engine, and the run's record."""
    result = engine.generate([tokens], max_new_tokens=steps + 1, **options)[0]
    timings = result.record.timings
    assert len(result.tokens) == steps + 1, "the model stopped early"
    assert timings.decode_ms_per_token is not None
    return timings.prefill_s, timings.decode_ms_per_token / 1e3, result.record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--context", type=int, default=4096, help="prompt tokens")
    parser.add_argument("--steps", type=int, default=24, help="decode steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", default="full,snapkv keep=0.25 post,snapkv keep=0.25 chunk", help="or all")
    parser.add_argument("--out", help="JSON record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = list(VARIANTS) if args.variants == "all" else args.variants.split(",")
    plain = model_of(args.model, args.dtype)
    engine = Engine(copy.deepcopy(plain), name=args.model)
    engine.model.generation_config.eos_token_id = None  # every variant decodes the same number of steps
    vocabulary = plain.config.vocab_size
    tokens = torch.randint(10, vocabulary, (args.context,), generator=torch.Generator().manual_seed(0))
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ("transformers", *chosen)}
    whole: list[float] = []
    records: dict[str, Any] = {}
    for round_ in range(args.rounds + 1):  # the first round warms up
        names = list(runs)
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            if name == "transformers":
                pair = transformers_run(plain, tokens.tolist(), args.steps)
            else:
                *pair, records[name] = kvfoot_run(engine, tokens.tolist(), args.steps, VARIANTS[name])
            print(f"round {round_} {name:<28}{pair[0]:>9.3f} s{pair[1] * 1e3:>9.2f} ms", flush=True)
            if round_:
                runs[name].append(tuple(pair))
        if round_:
            whole.append(generate_run(plain, tokens.tolist(), args.steps))
    medians = {name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in runs.items()}
    base, full = medians["transformers"], medians["full"]
    rows = {
        name: {
            "prefill_s": prefill,
            "decode_ms": decode * 1e3,
            "prefill / transformers": prefill / base[0],
            "decode / transformers": decode / base[1],
            "prefill / full": prefill / full[0],
            "decode / full": decode / full[1],
        }
        for name, (prefill, decode) in medians.items()
    }
    whole_s = statistics.median(whole)
    print(f"{'':<28}{'prefill':>10}{'decode':>11}{'/ transformers':>16}{'/ full':>16}")
    print(f"{'variant':<28}{'s':>10}{'ms':>11}{'prefill':>8}{'decode':>8}{'prefill':>8}{'decode':>8}")
    for name, row in rows.items():
        print(
            f"{name:<28}{row['prefill_s']:>10.3f}{row['decode_ms']:>11.2f}"
            + "".join(f"{row[f'{stage} / {base}']:>8.2f}" for base in ("transformers", "full") for stage in STAGES)
        )
    parts = base[0] + args.steps * base[1]
    print(f"transformers.generate as a whole: {whole_s:.3f} s; its parts as timed above: {parts:.3f} s")
    if args.out:
        record = {
            "benchmark": "cpu",
            "command": f"python benchmarks/cpu.py --model {args.model} --dtype {args.dtype} --context {args.context} "
            f"--steps {args.steps} --rounds {args.rounds} --threads {args.threads} --variants {args.variants!r}",
            "rows": rows,
            "generate_s": whole_s,
            "runs": {name: asdict(r) for name, r in records.items()},
            "packages": packages() | {"kvfoot": __version__},
            "device": device(torch.device("cpu")) | {"cores": os.cpu_count(), "system": platform.platform()},
            "date": time.strftime("%Y-%m-%d"),
        }
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
        print(speed_table(record))


if __name__ == "__main__":
    main()
