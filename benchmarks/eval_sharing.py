"""What a shared prefill saves: m methods that evict after the prompt, each alone, and on forks of one prefill.

    python benchmarks/eval_sharing.py --model smollm2 --context 2048 --out results/eval_sharing.json

Times are of the prompt up to the kept cache, medians over rounds; answers come on top and cost the same either way. One
prefill is that of full attention. Every variant's kept rows are compared, so that the same work is timed. With --cpu,
seconds of the processor instead of the clock's: for a machine that others use, with one thread.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from time import perf_counter, process_time

import torch

from kvfoot import Engine, __version__
from kvfoot.bench.record import command_line
from kvfoot.core.budget import Budget
from kvfoot.core.registry import method as find_method
from kvfoot.engine.account import device, packages
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.shared import Member, Shared, groups

METHODS = "snapkv,pyramidkv,adakv,keynorm,random,tova,streaming,h2o"
KEEPS = (0.9, 0.5, 0.1)


clock = perf_counter


def alone(engine: Engine, tokens: list[int], member: Member) -> tuple[float, list[list[int]]]:
    runner = engine.runner([member.plan], 8)
    began = clock()
    sequence = runner.open(tokens, member.method, member.plan, Sampling(), 0)
    runner.prefill(sequence)
    seconds = clock() - began
    lens = sequence.rows.lens.tolist()
    runner.cache.release(sequence.rows)
    return seconds, lens


def together(engine: Engine, tokens: list[int], members: list[Member]) -> tuple[float, float, list[list[list[int]]]]:
    """Seconds of the shared prefills, of all forks, and what each kept."""
    read = forks = 0.0
    lens: dict[int, list[list[int]]] = {}
    for index in groups(members):
        own = [members[i] for i in index]
        shared = Shared(own, engine.geometry)
        runner = engine.runner([shared.plan] * 3, 8)
        began = clock()
        base = shared.read(runner, tokens)
        read += clock() - began
        for i, member in zip(index, own, strict=True):
            began = clock()
            sequence = shared.fork(runner, base, member)
            forks += clock() - began
            lens[i] = sequence.rows.lens.tolist()
            runner.cache.release(sequence.rows)
        runner.cache.release(base.sequence.rows)
    return read, forks, [lens[i] for i in range(len(members))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", help="JSON record")
    args = parser.parse_args()
    if args.cpu:
        global clock  # noqa: PLW0603
        clock = process_time
    torch.set_num_threads(args.threads)
    engine = Engine.load(args.model, dtype=args.dtype, device=args.device)
    vocabulary = engine.model.config.vocab_size
    tokens = torch.randint(10, vocabulary, (args.context,), generator=torch.Generator().manual_seed(0)).tolist()
    names = args.methods.split(",")
    chosen = [(find_method(name), Budget.of(keep=keep)) for name in names for keep in KEEPS]
    members = [Member(m, engine.plan(m, b, args.context, args.chunk, 8)) for m, b in chosen]
    full = find_method("full")
    members.insert(0, Member(full, engine.plan(full, Budget(), args.context, args.chunk, 8)))
    runs: list[tuple[float, float, float, float]] = []
    for round_ in range(args.rounds + 1):  # the first one warms up
        each = [alone(engine, tokens, member) for member in members]
        read, forks, lens = together(engine, tokens, members)
        assert lens == [kept for _, kept in each], "shared and alone keep different rows"
        run = each[0][0], sum(seconds for seconds, _ in each), read, forks
        print(
            "round {} one {:.2f} s, alone {:.2f} s, shared read {:.2f} s + forks {:.2f} s".format(round_, *run),
            flush=True,
        )
        if round_:
            runs.append(run)
    one, apart, read, forks = (statistics.median(column) for column in zip(*runs, strict=True))
    record = {
        "benchmark": "eval_sharing",
        "command": command_line("python benchmarks/eval_sharing.py", sys.argv[1:]),
        "clock": "processor" if args.cpu else "wall",
        "methods": len(members),
        "groups": len(groups(members)),
        "one_prefill_s": one,
        "alone_s": apart,
        "shared_read_s": read,
        "forks_s": forks,
        "alone / one": apart / one,
        "shared / one": (read + forks) / one,
        "alone / shared": apart / (read + forks),
        "dtype": str(engine.dtype),
        "packages": packages() | {"kvfoot": __version__},
        "device": device(engine.device) | {"cores": os.cpu_count(), "system": platform.platform()},
        "date": time.strftime("%Y-%m-%d"),
    }
    for name in ("methods", "groups", "alone / one", "shared / one", "alone / shared"):
        print(f"{name}: {record[name]:.4g}")
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
