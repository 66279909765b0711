"""The two sides of a decode benchmark on one model: kvfoot's engine, and the model as transformers runs it."""

import gc
import statistics
from dataclasses import dataclass, field, replace
from itertools import pairwise
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache

from kvfoot.bench.measure import wait
from kvfoot.bench.synthetic import fill, shortened
from kvfoot.bench.variant import TRANSFORMERS, Variant
from kvfoot.cache.trace import Pass, Trace
from kvfoot.core.geometry import Geometry
from kvfoot.engine.clock import Clock
from kvfoot.engine.engine import Engine
from kvfoot.engine.graphable import told
from kvfoot.engine.runner import Event
from kvfoot.engine.sampler import Sampling
from kvfoot.models.bridge import attach, detach
from kvfoot.models.fusion import Fusion


@dataclass
class Times:
    """Milliseconds: of a step on average in each round, and of every single step, from token to token."""

    rounds: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def add(self, marks: list[float]) -> None:
        """A round: when each token was there, in seconds; the step up to the second one is not measured."""
        each = [1e3 * (b - a) for a, b in pairwise(marks[1:])]
        self.rounds.append(statistics.mean(each))
        self.steps += each

    @property
    def ms(self) -> float:
        """The median round. A mean within it: a method whose steps differ is charged for all of them."""
        return statistics.median(self.rounds)


class Side(Protocol):
    """A batch of sequences that decodes in rounds, a step more in each. kv_bytes: what a measured step reads."""

    name: str
    times: Times

    def decode(self, steps: int, measured: bool = True) -> None: ...

    def kv_bytes(self) -> float: ...

    def facts(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Ours:
    """kvfoot's engine by its public steps: open, prefill, decode, release. Greedy."""

    def __init__(self, engine: Engine, variant: Variant, prompt: int, batch: int, later: int, synthetic: bool):
        """prompt: tokens in the cache before the first step; later: tokens decoded in all. Raises PoolExhausted."""
        self.engine, self.name, self.times = engine, variant.title, Times()
        self.stop, self.marks = 0, list[float]()
        method, plan = variant.of(engine.geometry), variant.plan(engine.geometry, prompt)
        self.how = told(engine.graph, method, plan)
        whole = shortened(plan, engine.geometry, prompt) if synthetic else plan
        self.runner, self.left = engine.runner([whole] * batch, later, self._hear), later
        if self.runner.graphs is not None and variant.fuse is not None and engine.fuse is not None:
            fuse = replace(engine.fuse, level=variant.fuse)
            self.runner.graphs.fusion = Fusion(engine.model, fuse) if variant.fuse else None
        fusion = None if self.runner.graphs is None else self.runner.graphs.fusion
        self.fused = {} if fusion is None else fusion.found()
        size = engine.model.config.vocab_size
        tokens = torch.randint(size, (prompt,), generator=torch.Generator().manual_seed(0)).tolist()
        self.sequences, self.logits = [], []
        for i in range(batch):
            own = replace(whole, passes=whole.passes[-1:]) if synthetic else whole
            sequence = self.runner.open(tokens, method, own, Sampling(), i)
            if synthetic:
                fill(self.runner.cache, sequence, whole)
            self.sequences.append(sequence)
            self.logits.append(self.runner.prefill(sequence, i))
        self.entries = float(np.mean([s.rows.lens for s in self.sequences]))
        self.held_bytes = self.runner.cache.pool.held_bytes
        self.measured: list[list[Pass]] = [[] for _ in self.sequences]

    def _hear(self, event: Event) -> None:
        """When tokens come, and that a round ends before the sequences do: `left` tokens are theirs."""
        if event.kind == "token":
            if event.sequence == len(self.sequences) - 1:
                self.marks.append(perf_counter())
            if event.done >= self.stop:
                self.sequences[event.sequence].done = True

    def decode(self, steps: int, measured: bool = True) -> None:
        """A round of steps of all sequences, and one before them in which the engine takes the batch over, unmeasured.

        The last token of a round is never read: the next round has its own.
        """
        for sequence in self.sequences:
            if sequence.generated:
                sequence.tokens.pop()
            sequence.generated.clear()
            sequence.done = False
        self.stop, self.marks = steps + 2, []
        wait(self.engine.device)
        self.runner.decode(self.sequences, self.logits, self.left + 1, Sampling(), Clock())
        self.left -= steps + 1
        if measured:
            self.times.add(self.marks)
            for own, sequence in zip(self.measured, self.sequences, strict=True):
                own.extend(sequence.trace.passes[-steps:])

    def kv_bytes(self) -> float:
        """From the trace: entries read, a scan of keys alone counted half, over the measured steps."""
        trace = self.sequences[0].trace
        every = [p for own in self.measured for p in own]
        read = Trace(trace.geometry, trace.entry_bytes, trace.dense_bytes, every).read()
        return read * trace.dense_bytes / len(self.times.steps)

    def facts(self) -> dict[str, Any]:
        """How steps are run, what of the model is fused in them, entries per row after the prompt, bytes of the pages
        in use then; of readers, steps that refreshed."""
        found: dict[str, Any] = {"decode": self.how, "fused": self.fused}
        found |= {"entries_per_row": self.entries, "held_bytes": self.held_bytes}
        if self.measured[0] and self.measured[0][0].refreshed is not None:
            steps = zip(*self.measured, strict=True)
            fires = [any(p.refreshed is not None and bool((p.refreshed == 1).any()) for p in step) for step in steps]
            for name, which in (("refresh_ms", True), ("quiet_ms", False)):
                some = [ms for ms, fired in zip(self.times.steps, fires, strict=True) if fired is which]
                found[name] = statistics.median(some) if some else None
            found["refreshing_steps"] = sum(fires)
        return found

    def close(self) -> None:
        """The pages, and with the runner the pool, go back."""
        for sequence in self.sequences:
            self.runner.cache.release(sequence.rows)
        del self.runner, self.sequences, self.logits
        collect()


class Theirs:
    """transformers: the unmodified model with SDPA and DynamicCache, a forward pass and an argmax a step."""

    def __init__(self, engine: Engine, prompt: int, batch: int):
        self.engine, self.name, self.times, self.measured = engine, TRANSFORMERS, Times(), 0.0
        model, geometry = engine.model, engine.geometry
        self.cache, self.seen, self.batch = DynamicCache(config=model.config), prompt, batch
        shape = (batch, geometry.kv_heads, prompt, geometry.head_dim)
        for layer in range(geometry.layers):
            k, v = (torch.randn(shape, dtype=engine.dtype, device=engine.device) for _ in range(2))
            self.cache.update(k, v, layer)
        self.token = torch.zeros(batch, 1, dtype=torch.int64, device=engine.device)
        self.held_bytes = dense_bytes(geometry, engine.dtype.itemsize, prompt) * batch

    @torch.inference_mode()
    def decode(self, steps: int, measured: bool = True) -> None:
        """A round of steps and one before; tokens come to the host, as generate()'s test for the end has them."""
        model = self.engine.model
        detach(model, attach(model))
        try:
            wait(self.engine.device)
            marks = [perf_counter()]
            for _ in range(steps + 1):
                out = model(input_ids=self.token, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
                self.token = out.logits[:, -1:].argmax(-1)
                self.token.tolist()
                marks.append(perf_counter())
        finally:
            attach(model)
        if measured:
            size = self.engine.dtype.itemsize
            own = range(self.seen + 2, self.seen + steps + 2)
            self.measured += self.batch * sum(dense_bytes(self.engine.geometry, size, n) for n in own)
            self.times.add(marks)
        self.seen += steps + 1

    def kv_bytes(self) -> float:
        """What attention has to read: every key and value; the copies that the cache makes are its own affair."""
        return self.measured / len(self.times.steps)

    def facts(self) -> dict[str, Any]:
        return {"held_bytes": self.held_bytes}

    def close(self) -> None:
        del self.cache
        collect()


def dense_bytes(geometry: Geometry, itemsize: int, tokens: int) -> int:
    """Bytes of keys and values that full attention's next token sees behind `tokens`, windows counted."""
    entries = 0
    for layer in range(geometry.layers):
        window = geometry.window(layer)
        entries += tokens if window is None else min(tokens, window)
    return entries * geometry.kv_heads * geometry.entry_bytes(itemsize)


def collect() -> None:
    """Give what is no longer used back to the device, so that the next side can have it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
