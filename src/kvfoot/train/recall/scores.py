"""Abilities with full attention, by one forward pass over context and answers.

A unit is right when every token of it is the argmax. All units right equals a greedy generation that comes out word for
word; for long outputs, units before the first wrong one are what a free-running greedy decode gets right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kvfoot.evaluate.tasks.sample import Sample
from kvfoot.train.recall.model import Net, Streaming, streaming_mask
from kvfoot.train.recall.spread import Head
from kvfoot.train.recall.vocab import ASSISTANT, BOS, END, USER


@dataclass(frozen=True)
class Encoded:
    """A sample in tokens. units: (start, end, turn) of every unit of every answer."""

    tokens: NDArray[np.int64]
    units: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Score:
    """n answers, in `contexts`; exact: whole answers; units: units given the earlier ones; prefix: units before the
    first wrong one, as a share; nll: nats a token of the answers; low, high: 95 % interval of the metric's score."""

    n: int
    contexts: int
    exact: float
    units: float
    prefix: float
    nll: float
    score: float
    low: float
    high: float

    def record(self) -> dict[str, Any]:
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def encode_sample(tokenizer: Tokenizer, sample: Sample) -> Encoded:
    """As the chat template writes it, every turn after the earlier ones with their right answers."""
    texts = [sample.prompt]
    for index, turn in enumerate(sample.turns):
        texts += [turn.question] if index else []
        texts += turn.units
    encoded = iter(tokenizer.encode_batch_fast(texts))
    ids, units = [BOS], []
    for index, turn in enumerate(sample.turns):
        ids += [USER, *next(encoded).ids, ASSISTANT]
        for _ in turn.units:
            start = len(ids)
            ids += next(encoded).ids
            units.append((start, len(ids), index))
        ids.append(END)
    return Encoded(np.array(ids, np.int64), tuple(units))


@dataclass(frozen=True)
class Outcome:
    """Per unit: right or not, its mean nll, its sample and turn."""

    right: NDArray[np.bool_]
    nll: NDArray[np.float64]
    sample: NDArray[np.int64]
    turn: NDArray[np.int64]


@torch.no_grad()
def run(net: Net, samples: Sequence[Encoded], length: int, rows: int, streaming: Streaming | None = None) -> Outcome:
    """One pass over every sample, `rows` at a time, padded to `length`."""
    device = net.parameters["model.norm.weight"].device
    right, nll, owner, turn = [], [], [], []
    for first in range(0, len(samples), rows):
        part = samples[first : first + rows]
        batch = np.zeros((len(part), length), np.int64)
        for row, sample in enumerate(part):
            batch[row, : len(sample.tokens)] = sample.tokens
        tokens = torch.from_numpy(batch).to(device)
        x = net.hidden(tokens, streaming=streaming)
        spans = [(row, *unit) for row, sample in enumerate(part) for unit in sample.units]
        at = torch.tensor([row * length + t - 1 for row, a, b, _ in spans for t in range(a, b)], device=device)
        logits = net.logits(x[at])
        gold = tokens.view(-1)[at + 1]
        hit = (logits.argmax(-1) == gold).cpu().numpy()
        loss = F.cross_entropy(logits, gold, reduction="none").double().cpu().numpy()
        done = 0
        for row, a, b, index in spans:
            right.append(bool(hit[done : done + b - a].all()))
            nll.append(float(loss[done : done + b - a].mean()))
            owner.append(first + row)
            turn.append(index)
            done += b - a
    return Outcome(np.array(right), np.array(nll), np.array(owner), np.array(turn))


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n."""
    z = 1.96
    middle, scale = (share + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n)
    half = scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def score(outcome: Outcome, metric: str) -> Score:
    """Intervals: Wilson for `exact` (answers of one context count as independent); for `prefix`, 1.96 standard errors
    over the samples."""
    groups = np.unique(np.stack([outcome.sample, outcome.turn], 1), axis=0)
    exact, prefix = [], []
    for sample, turn in groups:
        right = outcome.right[(outcome.sample == sample) & (outcome.turn == turn)]
        exact.append(right.all())
        prefix.append(np.cumprod(right).mean())
    n = len(groups)
    main = float(np.mean(exact if metric == "exact" else prefix))
    low, high = wilson(main, n)
    if metric == "prefix":
        half = 1.96 * float(np.std(prefix)) / math.sqrt(n)
        low, high = max(0.0, main - half), min(1.0, main + half)
    return Score(
        n, len(set(outcome.sample.tolist())), float(np.mean(exact)), float(outcome.right.mean()),
        float(np.mean(prefix)), float(outcome.nll.mean()), main, low, high,
    )  # fmt: skip


@torch.no_grad()
def book_nats(
    net: Net, books: dict[str, NDArray[np.uint16]], characters: dict[str, int], length: int, rows: int, windows: int = 4
) -> dict[str, Any]:
    """Nats a token and a character on `windows` stretches of every book, whole and by position."""
    device = net.parameters["model.norm.weight"].device
    found = []
    for tokens in books.values():
        for index in range(windows):
            start = index * (len(tokens) - length) // windows
            found.append(np.concatenate([[BOS], tokens[start : start + length - 1]]).astype(np.int64))
    nll = []
    for first in range(0, len(found), rows):
        part = torch.from_numpy(np.stack(found[first : first + rows])).to(device)
        x = net.hidden(part)
        target = torch.roll(part, -1, 1).reshape(-1)
        losses = [
            F.cross_entropy(net.logits(a), b, reduction="none")
            for a, b in zip(x.split(32768), target.split(32768), strict=True)
        ]
        nll.append(torch.cat(losses).view(part.shape)[:, :-1].float().cpu().numpy())
    table = np.concatenate(nll)
    ratio = sum(len(tokens) for tokens in books.values()) / sum(characters[name] for name in books)
    cuts = [cut for cut in (0, 512, 2048, 8192) if cut < length] + [length]
    by_book = table.reshape(len(books), windows, -1).mean((1, 2)) * ratio
    return {
        "nats_per_character": round(float(table.mean()) * ratio, 4),
        "nats_per_token": round(float(table.mean()), 4),
        "tokens_per_character": round(ratio, 4),
        "windows": len(found),
        "standard_error_over_books": round(float(by_book.std(ddof=1) / math.sqrt(len(books))), 4),
        "by_book": {name: round(float(value), 4) for name, value in zip(books, by_book, strict=True)},
        "by_position": {f"{a}-{b}": round(float(table[:, a:b].mean()) * ratio, 4) for a, b in itertools.pairwise(cuts)},
    }


@torch.no_grad()
def head_effects(
    net: Net, sets: dict[str, list[Encoded]], length: int, rows: int, sinks: int = 128, window: int = 256
) -> dict[str, Any]:
    """Every KV head in turn sees only sinks and a window: change of answer nll in nats a token, by task."""
    device = net.parameters["model.norm.weight"].device
    mask = streaming_mask(length, sinks, window, device)
    base = {name: run(net, samples, length, rows) for name, samples in sets.items()}
    heads: dict[str, dict[str, Any]] = {}
    for layer in range(net.shape.layers):
        for head in range(net.shape.kv_heads):
            found = {}
            for name, samples in sets.items():
                got = run(net, samples, length, rows, Streaming(frozenset({(layer, head)}), mask))
                by_sample = np.array(
                    [(got.nll - base[name].nll)[got.sample == index].mean() for index in range(len(samples))]
                )
                found[name] = {
                    "nll": round(float((got.nll - base[name].nll).mean()), 4),
                    "standard_error": round(float(by_sample.std(ddof=1) / math.sqrt(len(by_sample))), 4),
                    "units": round(float(got.right.mean()), 4),
                }
            heads[f"{layer}.{head}"] = found
    full = {
        n: {"nll": round(float(b.nll.mean()), 4), "units": round(float(b.right.mean()), 4)} for n, b in base.items()
    }
    return {"length": length, "sinks": sinks, "window": window, "base": full, "heads": heads}


@torch.no_grad()
def spared_heads(
    net: Net,
    sets: dict[str, list[Encoded]],
    length: int,
    rows: int,
    order: Sequence[Head],
    counts: Sequence[int],
    sinks: int = 128,
    window: int = 256,
) -> dict[str, Any]:
    """The first `count` heads of `order` see everything and all others stream: answer nll and units right, by task.

    The other side of `head_effects`: a head whose loss others make up for has no effect there and is needed here.
    """
    mask = streaming_mask(length, sinks, window, net.parameters["model.norm.weight"].device)
    every = {(layer, head) for layer in range(net.shape.layers) for head in range(net.shape.kv_heads)}
    found: dict[str, Any] = {}
    for count in counts:
        streaming = Streaming(frozenset(every - set(order[:count])), mask)
        outcomes = {name: run(net, samples, length, rows, streaming) for name, samples in sets.items()}
        found[str(count)] = {
            name: {"nll": round(float(got.nll.mean()), 4), "units": round(float(got.right.mean()), 4)}
            for name, got in outcomes.items()
        }
    return {"length": length, "order": [f"{layer}.{head}" for layer, head in order], "full_heads": found}
