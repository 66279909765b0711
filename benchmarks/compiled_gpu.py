"""torch.compile of the model in a recorded decode step, against the step as it is and against its fused kernels.

    python benchmarks/compiled_gpu.py                        # Llama-3.1-8B's shape, 8K: results/gpu/compiled.json
    python benchmarks/compiled_gpu.py --shape tiny           # the same on a CPU, launched: out/gpu-tiny/compiled.json

Three or four sides on one set of weights, in rounds: the model's own operations (fuse=0), kvfoot's single kernels
(fuse=3), norms and gated MLPs compiled (`modules`), whole decoder layers compiled around an attention that is left
alone (`layers`). A side is recorded when it is warmed, so compiling in place afterwards does not touch it; whole
layers come last, since nothing undoes them.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from kvfoot import Engine
from kvfoot.bench import shapes
from kvfoot.bench.decode import Decoding, row
from kvfoot.bench.measure import copy_bandwidth
from kvfoot.bench.record import BenchRecord, command_line
from kvfoot.bench.shapes import streamed_bytes
from kvfoot.bench.sides import Ours
from kvfoot.bench.variant import Variant


def compile_modules(model: PreTrainedModel) -> int:
    """Compile every norm and MLP in place; how many."""
    named = [m for n, m in model.named_modules() if n.endswith(("mlp", "norm", "layernorm"))]
    for module in named:
        module.compile(dynamic=False)
    return len(named)


def compile_layers(model: PreTrainedModel) -> int:
    """Compile every decoder layer in place, with a break at attention; how many."""
    name = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[name] = torch.compiler.disable(ALL_ATTENTION_FUNCTIONS[name])
    torch._dynamo.config.recompile_limit = 4 * len(model.model.layers)  # a layer knows its index
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    return len(model.model.layers)


COMPILED = {"modules": compile_modules, "layers": compile_layers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--context", type=int, help="tokens (default 8192; of the shape tiny 128)")
    parser.add_argument("--what", default="modules,layers", help="what is compiled, in this order")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    tiny = args.shape == "tiny"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    backend = "triton" if device.type == "cuda" else "sdpa"
    engine = Engine(shapes.build(args.shape, kind, device), name=args.shape, backend=backend)
    variants = (Variant(fuse=0), Variant(fuse=3))
    steps, rounds, warm = (4, 2, 4) if tiny else (24, 5, 16)
    what = Decoding(variants, args.context or (128 if tiny else 8192), 1, steps, rounds, warm, True, False)
    prompt, bandwidth = what.prompt(engine.geometry), copy_bandwidth(device)

    def warmed(variant: Variant, name: str) -> Ours:
        began = time.perf_counter()
        side = Ours(engine, variant, prompt, 1, what.decoded, True)
        side.name = name
        side.decode(what.warm, measured=False)
        print(f"{name}: filled, compiled, recorded in {time.perf_counter() - began:.1f} s", flush=True)
        return side

    sides = [warmed(variant, variant.title) for variant in variants]
    for name in args.what.split(","):
        count = COMPILED[name](engine.model)
        sides.append(warmed(Variant(fuse=0), f"full, {count} {name} compiled"))
    for number in range(what.rounds):
        first = number % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            side.decode(what.steps)
            print(f"round {number + 1} of {what.rounds}: {side.name} {side.times.rounds[-1]:.3f} ms a step", flush=True)
    weights = streamed_bytes(engine.model)
    rows: dict[str, Any] = {side.name: row(side, 1, weights, bandwidth) for side in sides}
    figures = {"copy_bytes_per_second": bandwidth, "interleaved": True, "sides": rows}
    command = command_line("python benchmarks/compiled_gpu.py", sys.argv[1:])
    out = args.out or Path(f"out/gpu-{args.shape}" if tiny else "results/gpu") / "compiled.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    BenchRecord.of("decode", command, engine, what.settings(), figures).save(out)
    for name, found in rows.items():
        print(f"{name:<32} {found['ms']:.3f} ms  {found['ratio']:.2f} of the roofline  {found['decode']}")


if __name__ == "__main__":
    main()
