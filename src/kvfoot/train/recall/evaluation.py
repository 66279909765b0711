"""Abilities of a checkpoint on a dev side or the test side: tasks by length, book text, and the effect of each head."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.tasks.corpus import Corpus, read_corpus
from kvfoot.evaluate.tasks.registry import find_task
from kvfoot.evaluate.tasks.split import DESCRIPTIONS, Side
from kvfoot.train.recall.books import encode_books
from kvfoot.train.recall.checkpoint import load_model
from kvfoot.train.recall.feed import one_thread
from kvfoot.train.recall.model import GPU_BACKENDS, Net
from kvfoot.train.recall.scores import Encoded, book_nats, encode_sample, head_effects, run, score

# task: lengths in K, answers a context
CELLS: dict[str, tuple[tuple[int, ...], int]] = {
    "passkey": ((2, 4, 8, 16), 1),
    "keys4": ((2, 4, 8, 16), 4),
    "keys16": ((2, 4, 8, 16), 4),
    "keys64": ((8, 16), 8),
    "words16": ((8, 16), 4),
    "multivalue": ((4, 8, 16), 2),
    "multiquery": ((4, 8, 16), 2),
    "json-numbers": ((4, 8, 16), 8),
    "json-words": ((4, 8, 16), 8),
    "json-uuids": ((8, 16), 4),
    "variables": ((2, 4, 8, 16), 2),
    "labels": ((2,), 16),
    "chain": ((2, 4, 8, 16), 1),
    "path": ((4, 8, 16), 1),
    "table": ((4, 8, 16), 1),
    "quote": ((8, 16), 4),
}
HEAD_TASKS = ("keys16", "multivalue", "multiquery", "json-uuids", "variables", "labels", "chain", "path", "table")


@dataclass(frozen=True)
class Material:
    """One side's corpus and a tokenizer: what a set of samples is made from."""

    corpus: Corpus
    tokenizer: Tokenizer

    def make(self, job: tuple[str, int, int, int]) -> list[Encoded]:
        """(task, length, contexts, seed) -> samples in tokens."""
        name, length, contexts, seed = job

        def count(texts: list[str]) -> int:
            return sum(len(encoding.ids) for encoding in self.tokenizer.encode_batch_fast(texts))

        found: list[Encoded] = []
        index = 0
        while len(found) < contexts:
            sample = encode_sample(self.tokenizer, find_task(name).sample(self.corpus, count, length, seed, index))
            if len(sample.tokens) <= length:
                found.append(sample)
            index += 1
            if index > 3 * contexts + 20:
                raise UsageError(f"{name} does not fit into {length} tokens")
        return found


_material: list[Material] = []


def _make(job: tuple[str, int, int, int]) -> list[Encoded]:
    return _material[0].make(job)


def make_sets(material: Material, jobs: Sequence[tuple[str, int, int, int]], processes: int) -> list[list[Encoded]]:
    """The samples of every job. `processes` > 1 forks: call it before CUDA is touched. Cut small, so all cores work."""
    if processes <= 1:
        return [material.make(job) for job in jobs]
    _material[:] = [material]
    with multiprocessing.get_context("fork").Pool(processes, one_thread) as pool:
        return pool.map(_make, jobs, chunksize=1)


def shipped(folder: Path, device: torch.device) -> Net:
    """The released weights (bf16 values) with bf16 activations on a GPU, fp32 on a CPU."""
    shape, parameters = load_model(folder)
    cuda = device.type == "cuda"
    moved = {name: value.to(device) for name, value in parameters.items()}
    net = Net(shape, moved, torch.bfloat16 if cuda else torch.float32)
    if cuda:
        net.backends = list(GPU_BACKENDS)
    return net


def evaluate_recall(
    folder: Path, data: Path, side: Side, *, answers: int = 200, seed: int = 1, longest: int = 16384,
    device: str = "cpu", processes: int = 1, heads_at: int = 8192, heads_contexts: int = 24,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """At least `answers` answers a cell. The record holds scores, intervals, book text and head effects."""
    started = time.time()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    corpus = read_corpus(data, side)
    material = Material(corpus, tokenizer)
    cells = [
        (name, k * 1024, -(-answers // per)) for name, (ks, per) in CELLS.items() for k in ks if k * 1024 <= longest
    ]
    jobs = [(name, length, contexts, seed) for name, length, contexts in cells]
    head_jobs = [(name, heads_at, heads_contexts, seed + 1000) for name in HEAD_TASKS] if heads_contexts else []
    made = make_sets(material, sorted([*jobs, *head_jobs], key=lambda j: -j[1] * j[2]), processes)
    sets = dict(zip(sorted([*jobs, *head_jobs], key=lambda j: -j[1] * j[2]), made, strict=True))
    books = encode_books(corpus.books, tokenizer, min(processes, 5)).tokens
    say(f"{len(jobs)} cells made in {time.time() - started:.0f} s")

    net = shipped(folder, torch.device(device))

    def rows(length: int) -> int:
        return max(1, 131_072 // length) if device != "cpu" else max(1, 8192 // length)

    scores: dict[str, dict[str, Any]] = {}
    for name, length, contexts in cells:
        samples = sets[name, length, contexts, seed]
        result = score(run(net, samples, length, rows(length)), find_task(name).metric)
        scores.setdefault(name, {})[str(length)] = result.record()
    for name, by_length in scores.items():
        cells_of = [
            f"{int(length) // 1024}K {s['score']:.3f} [{s['low']:.2f} {s['high']:.2f}] units {s['units']:.3f}"
            for length, s in by_length.items()
        ]
        say(name.ljust(13) + "  ".join(cells_of))
    characters = {name: len(text) + 1 for name, text in corpus.books.items()}
    text = {
        str(length): book_nats(net, books, characters, length, rows(length))
        for length in (2048, 8192, 16384)
        if length <= longest
    }
    for window, found in text.items():
        say(f"books {window}: {found['nats_per_character']} nats a character, {found['by_position']}")
    record: dict[str, Any] = {"side": side, "description": DESCRIPTIONS[side], "seed": seed, "device": device}
    record |= {"scores": scores, "books": text}
    if head_jobs:
        head_sets = {job[0]: sets[job] for job in head_jobs}
        record["heads"] = head_effects(net, head_sets, heads_at, rows(heads_at))
        for head, effects in record["heads"]["heads"].items():
            strong = {name: effect["nll"] for name, effect in effects.items() if abs(effect["nll"]) >= 0.02}
            if strong:
                say(f"head {head}: {strong}")
        say(f"base {record['heads']['base']}")
    record["seconds"] = round(time.time() - started, 1)
    return record
