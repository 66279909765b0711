"""Gates for the built-in models: PruLong at several sparsities and seeds, DuoAttention once each, on one GPU.

    python benchmarks/gates_gpu.py --data DATA --out OUT [--models recall,smollm2] [--minutes 9]

DATA has books/, words/ and longproc/ (docs/recall.md); only the training side of it is read. `recall` learns from the
documents that it was trained on (needles, JSON, chains, routes, books; DuoAttention: those with answers), any other
model from books (DuoAttention: ten passkeys in them). OUT/MODEL/RUN/ gets heads.json, heads.txt, log.jsonl and a state:
called again the script goes on where --minutes ended it. OUT/MODEL-summary.json: per run the nll of rows that no run
was trained on (training side, another seed), for its heads, for random heads and for no full head at all. What is
worth shipping goes to src/kvfoot/data/heads/MODEL-RUN.json, where the methods prulong and duo find it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kvfoot.core.files import write_whole
from kvfoot.core.roles import HeadGates
from kvfoot.evaluate.tasks.corpus import Corpus, read_corpus
from kvfoot.models.layout import geometry_of
from kvfoot.models.load import load
from kvfoot.train.duo import Duo, DuoOptions
from kvfoot.train.heads import train_heads
from kvfoot.train.mixed import Mixed, Near
from kvfoot.train.packing import Packed, Row, Written, encoder
from kvfoot.train.passes import frozen, hidden, nll
from kvfoot.train.passkeys import Passkeys, PasskeyShape
from kvfoot.train.prulong import PruLong, PruLongOptions
from kvfoot.train.recall.feed import one_thread
from kvfoot.train.run import RunOptions
from kvfoot.train.state import NAME
from kvfoot.train.world import World

FRESH = 10_000_000
"""Rows from this number on are never trained on."""
Make = Callable[[int], Row]


class Plan(NamedTuple):
    """What is trained: tokens of a row, rows of a step (PruLong, DuoAttention), steps, near mask."""

    length: int
    rows: int
    duo_rows: int
    steps: int
    duo_steps: int
    sink: int
    window: int


PLANS = {
    "recall": Plan(8192, 4, 4, 300, 300, 128, 256),
    "": Plan(8192, 4, 1, 200, 400, 128, 1024),
}
"""By model; "" is any other."""


class Set(NamedTuple):
    """A run of the plan."""

    name: str
    sparsity: float | None
    seed: int


def sets(sparsities: list[float], seeds: int) -> list[Set]:
    """PruLong at every sparsity, at 0.7 (or the middle one) with every seed; DuoAttention with every seed."""
    middle = 0.7 if 0.7 in sparsities else sparsities[len(sparsities) // 2]
    found = [Set(f"prulong-{s:g}", s, 0) for s in sparsities] + [Set("duo", None, 0)]
    for seed in range(1, seeds):
        found += [Set(f"prulong-{middle:g}-seed{seed}", middle, seed), Set(f"duo-seed{seed}", None, seed)]
    return found


def of_recall(data: Path, folder: Path, length: int, answers: bool) -> Make:
    """Rows of kvfoot-recall's own kind; answers: documents without any are left out (DuoAttention)."""
    from tokenizers import Tokenizer

    from kvfoot.evaluate.tasks.wording_train import TrainWording
    from kvfoot.train.recall.books import encode_books
    from kvfoot.train.recall.mix import MAIN
    from kvfoot.train.recall.vocab import BOS
    from kvfoot.train.recall.writer import ANSWER, Writer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    corpus = read_corpus(data, "train")
    writer = Writer(tokenizer, encode_books(corpus.books, tokenizer), corpus, TrainWording())

    def make(number: int) -> Row:
        for attempt in range(100):
            made = writer.row(f"gates/{number}/{attempt}", length, MAIN)
            if not answers or (made.codes == ANSWER).any():
                break
        starts = sorted({0, *np.flatnonzero(made.tokens == BOS).tolist()})
        spans = tuple(zip(starts, [*starts[1:], length], strict=True))
        counted = torch.from_numpy(made.codes == ANSWER)
        return Row(torch.from_numpy(made.tokens.astype(np.int64)), spans, counted if answers else None)

    return make


def of_books(
    data: Path, corpus: Corpus, tokenizer: Any, length: int, answers: bool, seed: int, count: int
) -> list[Row]:
    """Books in rows; answers: with passkeys."""
    files = [
        path for path in sorted((data / "books").glob("*.txt.gz")) if path.name.removesuffix(".txt.gz") in corpus.books
    ]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    text = Packed(files, encoder(tokenizer), length, seed=seed, begin=begin)
    return (Passkeys(text, PasskeyShape(), seed) if answers else text).take(count)


_make: Make | None = None
Plain = tuple[np.ndarray, tuple[tuple[int, int], ...], np.ndarray | None]


def _one(number: int) -> Plain:
    """A row without tensors: those would travel through /dev/shm, which is small in containers."""
    one_thread()
    assert _make is not None
    row = _make(number)
    return row.tokens.numpy(), row.spans, None if row.supervised is None else row.supervised.numpy()


def in_parallel(make: Make, numbers: list[int], workers: int) -> list[Row]:
    """Rows by forked processes: before CUDA is touched."""
    global _make  # noqa: PLW0603
    _make = make
    if workers < 2:
        return list(map(make, numbers))
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        found = pool.map(_one, numbers, chunksize=8)
    return [Row(torch.from_numpy(a), spans, None if b is None else torch.from_numpy(b)) for a, spans, b in found]


@torch.no_grad()
def score(model: Any, rows: list[Row], full: np.ndarray, near: Near) -> float:
    """Mean nll of the targets with `full` heads open and all others streaming."""
    z, mixed, total, count = torch.tensor(full, dtype=torch.float32, device=model.device), Mixed(near), 0.0, 0
    with frozen(model, checkpointing=False), mixed.attached(model):
        for row in rows:
            targets = row.targets()
            total += float(nll(model, hidden(model, mixed, row, z, restart=False), targets))
            count += int((targets >= 0).sum())
    return total / max(count, 1)


def random_heads(shape: tuple[int, int], count: int, seed: int) -> np.ndarray:
    chosen = np.zeros(shape[0] * shape[1], bool)
    chosen[np.random.default_rng(seed).permutation(chosen.size)[:count]] = True
    return chosen.reshape(shape)


def judge(model: Any, rows: list[Row], gates: HeadGates, sparsities: list[float], near: Near) -> dict[str, Any]:
    """Nll by sparsity: with all heads full, with these heads, with as many random ones (three draws), with none.

    Both methods' gates are rounded by one rule, so that they are compared at the same number of heads.
    """
    shape, gates = gates.shape, replace(gates, rule="top")
    found: dict[str, Any] = {
        "full": score(model, rows, np.ones(shape, bool), near),
        "streaming": score(model, rows, np.zeros(shape, bool), near),
    }
    for sparsity in sparsities:
        full = gates.full(sparsity)
        others = [score(model, rows, random_heads(shape, int(full.sum()), seed), near) for seed in range(3)]
        found[f"{sparsity:g}"] = {
            "heads": score(model, rows, full, near),
            "random": others,
            "full_heads": int(full.sum()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", default="recall,smollm2", help="aliases or folders, in this order")
    parser.add_argument("--sparsities", default="0.3,0.5,0.7,0.9")
    parser.add_argument("--seeds", type=int, default=3, help="runs at the middle sparsity, and of DuoAttention")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no step after this time")
    parser.add_argument("--fresh", type=int, default=16, help="rows that judge")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    for name in Plan._fields:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default by model: {name}")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.time() + given.minutes * 60
    for model in given.models.split(","):
        own = {name: getattr(given, name) for name in Plan._fields if getattr(given, name) is not None}
        train(model, given, PLANS.get(model, PLANS[""])._replace(**own), end)


def train(name: str, given: argparse.Namespace, plan: Plan, end: float) -> None:
    sparsities = [float(s) for s in given.sparsities.split(",")]
    numbers = list(range(plan.steps * plan.rows))
    duo_numbers = list(range(plan.duo_steps * plan.duo_rows))
    fresh = list(range(FRESH, FRESH + given.fresh))
    cuda = torch.cuda.is_available()
    loaded = load(name, device="cpu", dtype="bfloat16" if cuda else "auto")
    began = time.time()
    if name == "recall":
        from kvfoot.models.builtin import SHIPPED

        makes = [of_recall(given.data, SHIPPED["recall"], plan.length, answers) for answers in (False, True)]
        data = in_parallel(makes[0], numbers, given.workers)
        duo_data, held = (in_parallel(makes[1], which, given.workers) for which in (duo_numbers, fresh))
    else:
        books = partial(of_books, given.data, read_corpus(given.data, "train"), loaded.tokenizer, plan.length)
        data, duo_data = books(False, 0, len(numbers)), books(True, 0, len(duo_numbers))
        held = books(True, 1, given.fresh)
    print(f"{name}: {len(data) + len(duo_data)} rows in {time.time() - began:.0f} s", flush=True)
    model = loaded.model.to("cuda" if cuda else "cpu")
    geometry, near = geometry_of(model), Near(plan.sink, plan.window)
    shape = (geometry.layers, geometry.kv_heads)
    summary_path = given.out / f"{Path(name).name}-summary.json"
    summary = json.loads(summary_path.read_text()) if summary_path.is_file() else {}
    for one in sets(sparsities, given.seeds):
        if one.name in summary or time.time() > end:
            continue
        trainer: PruLong | Duo
        if one.sparsity is not None:
            options = PruLongOptions(one.sparsity, plan.steps, one.seed, plan.sink, plan.window)
            trainer, rows, batch = PruLong(model, shape, options, World(0, 1)), data, plan.rows
        else:
            duo_options = DuoOptions(plan.duo_steps, one.seed, plan.sink, plan.window)
            trainer, rows, batch = Duo(model, shape, duo_options, World(0, 1)), duo_data, plan.duo_rows
        out = given.out / Path(name).name / one.name
        # Another seed reads the same rows in another order.
        order = np.random.default_rng(one.seed).permutation(len(rows))
        source = Written(lambda i, rows=rows, order=order: rows[order[i % len(rows)]])  # type: ignore[misc]
        said = {"kind": "recall's documents" if name == "recall" else "books", "length": plan.length}
        how = RunOptions(
            out, batch, save_every=50, log_every=10, resume=(out / NAME).is_file(), data=said, model_name=name,
            revision=loaded.revision, checkpointing=plan.length > 4096,
        )  # fmt: skip
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.time()

        def stop(numbers: dict[str, float]) -> None:
            if time.time() > end:
                raise TimeoutError

        try:
            gates = train_heads(trainer, source, how, stop)
        except TimeoutError:
            print(f"{name} {one.name}: cut by --minutes, call again to go on", flush=True)
            return
        wanted = sparsities if one.sparsity is None else [one.sparsity]
        tokens = trainer.options.steps * batch * plan.length
        peak = torch.cuda.max_memory_allocated() if cuda else None
        with torch.no_grad():
            nats = judge(model, held, gates, wanted, near)
        summary[one.name] = {
            "nll": nats, "seconds": round(time.time() - began, 1), "tokens": tokens, "peak_bytes": peak,
            "last": gates.training["last"], "device": gates.training["device"],
        }  # fmt: skip
        write_whole(summary_path, json.dumps(summary, indent=1) + "\n")
        print(name, one.name, json.dumps(summary[one.name]["nll"]), f"{summary[one.name]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
