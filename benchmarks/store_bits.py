"""Does a cache in 8 or 4 bits rank like the whole one? RefreshKV's choice by coded keys against that by exact ones.

    python benchmarks/store_bits.py --model smollm2 --data DATA --length 2048 --samples 4 --out results/store_bits.json

Passages of held-out books are read by full attention. For the last `steps` queries of every layer RefreshKV's selection
(K = length / 8, per KV head) is made from the keys as they are and from the keys as they would be stored. Per way of
storing, means over passages, layers, heads and queries:

overlap    of the two sets, over K                            worst   the layer with the least of it
mass       attention that the chosen set has, over that of the set chosen by exact keys
error      of the attention output over all entries, keys and values stored, over the output's norm
bytes      of a key or value, over the model's dtype

What cache/format.py does not do, for keys: `channel`, groups of 32 tokens per channel, as KIVI (arXiv 2402.02750);
`turned`, channels mixed by a Hadamard matrix first, which spreads those that are large.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvfoot import Engine
from kvfoot.bench.record import command_line
from kvfoot.cache.format import Grouped
from kvfoot.core.budget import Budget, split
from kvfoot.core.registry import method as find_method
from kvfoot.engine.account import device, packages
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.span import Span
from kvfoot.engine.step import Step
from kvfoot.evaluate.tasks.corpus import read_corpus
from kvfoot.methods.read.refreshkv import best

CHANNEL = 32
Ways = dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]]


class Listening(Step):
    """A pass that keeps the last queries [heads, steps, D] and the scale of every layer."""

    steps = 0

    def attend(self, call: Any) -> Tensor:
        self.heard[call.layer] = call.q[0, :, -self.steps :].clone(), call.scale
        return super().attend(call)


def ways(head_dim: int, dtype: torch.dtype) -> Ways:
    found: Ways = {}
    for bits in (8, 4):
        form = Grouped(bits, head_dim, dtype)
        coded = lambda x, form=form: form.decode(form.encode(x))  # noqa: E731
        small = form.width / (head_dim * dtype.itemsize)
        found[f"store={bits}"] = coded, coded, small
        along = Grouped(bits, CHANNEL, dtype)
        found[f"channel {bits}"] = lambda x, along=along: channels(x, along), coded, small
        h = hadamard(head_dim)
        found[f"turned {bits}"] = lambda x, coded=coded, h=h: coded(x.float() @ h).float() @ h.T, coded, small
    return found


def hadamard(size: int) -> Tensor:
    h = torch.ones(1, 1)
    while len(h) < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    assert len(h) == size
    return h / size**0.5


def channels(x: Tensor, along: Grouped) -> Tensor:
    """Keys [G, n, D] with groups of 32 tokens per channel; what does not fill a group stays exact."""
    whole = x.shape[1] // CHANNEL * CHANNEL
    head = x[:, :whole].unflatten(1, (-1, CHANNEL)).transpose(2, 3)
    return torch.cat([along.decode(along.encode(head)).transpose(2, 3).flatten(1, 2), x[:, whole:]], 1)


@torch.inference_mode()
def measure(engine: Engine, tokens: list[int], steps: int) -> dict[str, list[dict[str, float]]]:
    """Per way of storing, a row per layer."""
    full, geometry, size = find_method("full"), engine.geometry, len(tokens) // 8
    plan = engine.plan(full, Budget(), len(tokens), 512, 1)
    runner = engine.runner([plan], 1)
    sequence = runner.open(tokens, full, plan, Sampling(), 0)
    for a, b in split(len(tokens), 512, steps):
        step = Listening(runner.cache, runner.backend, [Span(sequence, 0, b - a, None)])
        step.steps, step.heard = steps, {}
        step.forward(runner.model, tokens[a:b])
    found: dict[str, list[dict[str, float]]] = {}
    for layer in geometry.open_layers:
        k, v = (x.clone() for x in runner.cache.history(sequence.rows, layer, tuple(range(geometry.kv_heads))))
        q, scale = step.heard[layer]
        q = q.view(geometry.kv_heads, geometry.group, steps, -1).float()
        for name, (on_k, on_v, _) in ways(geometry.head_dim, engine.dtype).items():
            near_k, near_v = on_k(k).float(), on_v(v).float()
            rows = []
            for i in range(steps):
                n = len(tokens) - steps + i + 1
                exact, rough = ((q[:, :, i] * scale @ x[:, :n].mT).softmax(-1) for x in (k.float(), near_k))
                sets = [best(w[..., : n - 1].contiguous(), size - 1) for w in (exact, rough)]
                both = torch.cat(sets, 1).sort(1).values
                overlap = (both[:, 1:] == both[:, :-1]).float().sum(1) / (size - 1)
                mass = [exact.mean(1).gather(1, s).sum(1) for s in sets]
                out, near = exact @ v[:, :n].float(), rough @ near_v[:, :n]
                error = (near - out).norm(dim=-1) / out.norm(dim=-1)
                rows.append([overlap.mean(), (mass[1] / mass[0]).mean(), error.mean()])
            mean = torch.tensor(rows).mean(0).tolist()
            found.setdefault(name, []).append(dict(zip(("overlap", "mass", "error"), mean, strict=True)))
    runner.cache.release(sequence.rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="one or several, separated by commas")
    parser.add_argument("--data", required=True, help="folder with books/")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    began, models = time.perf_counter(), {}
    corpus = read_corpus(args.data, "dev")
    for name in args.model.split(","):
        engine, rows = Engine.load(name), dict[str, list[list[dict[str, float]]]]()
        for index in range(args.samples):
            text = corpus.passage(random.Random(f"store_bits/{args.seed}/{index}"), 8 * args.length)
            tokens = list(engine.tokenizer(text)["input_ids"])[: args.length]
            assert len(tokens) == args.length
            for way, layers in measure(engine, tokens, args.steps).items():
                rows.setdefault(way, []).append(layers)
        table = {}
        for way, samples in rows.items():
            figure = lambda key, s=samples: torch.tensor([[x[key] for x in layers] for layers in s]).mean(0)  # noqa: E731
            bytes_ = ways(engine.geometry.head_dim, engine.dtype)[way][2]
            table[way] = {key: round(float(figure(key).mean()), 4) for key in ("overlap", "mass", "error")}
            table[way] |= {"worst": round(float(figure("overlap").min()), 4), "bytes": round(bytes_, 4)}
            print(name, way, table[way], flush=True)
        models[name] = {"revision": engine.revision, "dtype": str(engine.dtype), "table": table}
        engine.close()
    args.out.write_text(
        json.dumps(
            {
                "benchmark": "store_bits",
                "command": command_line("python benchmarks/store_bits.py", sys.argv[1:]),
                "models": models,
                "length": args.length, "steps": args.steps, "samples": args.samples,
                "seconds": round(time.perf_counter() - began, 1),
                "packages": packages(),
                "device": device(torch.device("cpu")),
                "date": time.strftime("%Y-%m-%d"),
            },
            indent=1,
        )
        + "\n"
    )  # fmt: skip


if __name__ == "__main__":
    main()
