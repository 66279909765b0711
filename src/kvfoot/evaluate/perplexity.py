"""Perplexity of a long text with the method active all along it, by position.

The text but its tail is a prompt, read and cut as the method's plan says: with chunked eviction every chunk is
predicted from what was kept of the chunks before it. The tail is fed as a decode step would, so that a method that acts
while decoding acts there too. RefreshKV reports the tail's figure: 256 tokens after 16K (specification, section 4.1).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.hooks import Method
from kvfoot.core.records import RunRecord
from kvfoot.engine.account import record
from kvfoot.engine.clock import Clock
from kvfoot.engine.engine import CHUNK, Engine
from kvfoot.engine.sampler import Sampling
from kvfoot.evaluate.forced import follow, nats, read
from kvfoot.evaluate.protocol import LIKELIHOOD, Count, Example
from kvfoot.evaluate.tasks.measure import SLACK, largest
from kvfoot.evaluate.tasks.texts import read_texts

TAIL = 256
FIRST = 512
"""The first bucket's end; each further bucket ends at twice the position."""


@dataclass(frozen=True)
class Perplexity:
    """nats: of the tokens at 1, 2, ... (the first token is predicted from nothing). tail: tokens of the tail.

    record: of the run, its trace's footprint among it.
    """

    nats: tuple[float, ...]
    tail: int
    record: RunRecord

    @property
    def whole(self) -> float:
        """Perplexity of all tokens but the first."""
        return math.exp(sum(self.nats) / len(self.nats))

    @property
    def of_tail(self) -> float:
        return math.exp(sum(self.nats[-self.tail :]) / self.tail)

    def buckets(self) -> dict[str, float]:
        """Perplexity of the tokens at [1, 512), [512, 1024), [1024, 2048), ..., as far as the text goes."""
        found, start, end = {}, 1, FIRST
        while start <= len(self.nats):
            part = self.nats[start - 1 : end - 1]
            found[f"{start}-{min(end - 1, len(self.nats))}"] = math.exp(sum(part) / len(part))
            start, end = end, 2 * end
        return found


def perplexity(
    engine: Engine,
    tokens: list[int],
    method: Method,
    budget: Budget | None = None,
    *,
    chunk: int | None = CHUNK,
    tail: int = TAIL,
) -> Perplexity:
    """Of a text in tokens. Raises UsageError where it is not longer than the tail, or longer than the model allows."""
    if tail < 1 or len(tokens) < tail + 1:
        raise UsageError(f"{len(tokens)} tokens of text with a tail of {tail}: give a longer text or a shorter tail")
    budget = budget or Budget()
    prompt = tokens[:-tail]
    plan = engine.plan(method, budget, len(prompt), chunk, tail)
    runner = engine.runner([plan], tail)
    sequence = runner.open(prompt, method, plan, Sampling(), 0)
    clock = Clock()
    found: list[float] = []
    for start, logits in read(runner, sequence):
        found += nats(logits, tokens[start + 1 : start + 1 + len(logits)])
    clock.filled(runner.cache.pool.held_bytes)
    clock.begun()
    at = len(prompt) + 1
    for logits in follow(runner, sequence, tokens[len(prompt) : -1]):
        found += nats(logits, tokens[at : at + len(logits)])
        at += len(logits)
    sequence.generated = list(tokens[-tail:])
    config = engine.config(method, budget, chunk, tail, Sampling()) | {"chat": False, "question": None}
    whole = record(runner, [sequence], clock, config, engine.revision, 0)
    runner.cache.release(sequence.rows)
    return Perplexity(tuple(found), tail, whole)


@dataclass(frozen=True)
class BookTail:
    """A task for sweeps: the NLL of the last tokens of a long passage; its text is read without a chat template."""

    name: str = "perplexity"
    tail: int = TAIL
    folder: Path | None = None
    chat: bool | None = False
    category: str = "text"
    metric: str = LIKELIHOOD

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        texts = read_texts(self.folder, self.name)
        if length < 2 * self.tail:
            raise UsageError(f"{self.name} scores {self.tail} tokens: ask for at least {2 * self.tail}")
        probe = texts.passage(rng, 4000)
        words = texts.passage(rng, int(5200 / count([probe]) * length) + 4000).split(" ")
        before = self._words(words, length - self.tail - SLACK, count)
        tail = words[before:]
        after = self._words(tail, self.tail, count)
        return Example(" ".join(words[:before]), "", (" " + " ".join(tail[:after]),), room=self.tail)

    def _words(self, words: list[str], tokens: int, count: Count) -> int:
        """How many of the words take at most `tokens` tokens."""
        return largest(self.name, lambda n: count([" " + " ".join(words[:n])]), tokens, len(words))


def text_tokens(tokenizer: Any, text: str, length: int) -> list[int]:
    """The first `length` tokens of a text, as a model without a chat reads it. `UsageError` where it is shorter."""
    tokens = list(tokenizer(text)["input_ids"])
    if len(tokens) < length:
        raise UsageError(f"the text has {len(tokens)} tokens; {length} are needed")
    return tokens[:length]
