"""Reading a prompt: time against the operations that it takes, and the memory needed beside weights and cache."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from kvfoot.bench import memory
from kvfoot.bench.measure import floor_ms, product_rate, seconds
from kvfoot.bench.shapes import linear_flops
from kvfoot.bench.sides import collect, dense_bytes
from kvfoot.bench.variant import TRANSFORMERS, Variant, context_of, page_bytes
from kvfoot.cache.trace import triangle
from kvfoot.core.geometry import Geometry
from kvfoot.engine.engine import Engine
from kvfoot.engine.runner import peak_pages
from kvfoot.engine.sampler import Sampling
from kvfoot.models.bridge import attach, detach

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Reading:
    """What is read. warm: tokens of a prompt that is read before, unmeasured. transformers: in one pass, SDPA."""

    variants: tuple[Variant, ...]
    context: int
    rounds: int = 3
    warm: int = 1024
    transformers: bool = True

    def needs(self, geometry: Geometry, itemsize: int, page_size: int, width: int) -> dict[str, int]:
        """Bytes by side, beside the weights; width: a token's activations that live at once, in elements."""
        context_of(self.context, 0, geometry)
        found = {}
        for variant in self.variants:
            plan = variant.plan(geometry, self.context)
            longest = max(p.stop - p.start for p in plan.passes)
            pages = peak_pages(plan, geometry, page_size, 1) * page_bytes(plan, geometry, itemsize, page_size)
            found[variant.title] = pages + longest * width * itemsize
        if self.transformers:
            dense = dense_bytes(geometry, itemsize, self.context)
            found[TRANSFORMERS] = dense + self.context * width * itemsize
        return found

    def settings(self) -> dict[str, Any]:
        """What a record says of it."""
        chunks = {v.title: v.chunk for v in self.variants}
        return {"context": self.context, "rounds": self.rounds, "warm": self.warm, "batch": 1, "chunk": chunks}


@dataclass(frozen=True)
class Read:
    """One prompt read. pairs: of a query and an entry. cache_bytes: reserved, peak_bytes: the most in use, trace_bytes:
    the most by the trace. above_bytes: the most beside weights and cache, None where nothing tells (a CPU)."""

    seconds: float
    pairs: int
    cache_bytes: int
    peak_bytes: int
    trace_bytes: int
    kv_footprint: float
    above_bytes: int | None


def width_of(config: Any) -> int:
    """Elements of activations per token in an MLP block: gate, up and their product, and four hidden states."""
    return int(3 * config.intermediate_size + 4 * config.hidden_size)


def prefill(engine: Engine, what: Reading, tell: Tell, rate: float | None = None) -> dict[str, Any]:
    """Figures of every side, rounds interleaved. Raises UsageError where a side does not fit the memory."""
    rate = rate or product_rate(engine.device, engine.dtype)
    tell(f"matrix product {rate / 1e12:.2f} TFLOP/s")
    width = width_of(engine.model.config)
    needs = what.needs(engine.geometry, engine.dtype.itemsize, engine.page_size, width)
    for name, size in needs.items():
        memory.require({name: size}, engine.device)
    runs: dict[str, Callable[[int], Read]] = {v.title: partial(_ours, engine, v) for v in what.variants}
    if what.transformers:
        runs[TRANSFORMERS] = partial(_theirs, engine)
    found: dict[str, list[Read]] = {name: [] for name in runs}
    for run in runs.values():
        run(min(what.warm, what.context))
    for number in range(what.rounds):
        names = list(runs)
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            found[name].append(runs[name](what.context))
            tell(f"round {number + 1} of {what.rounds}: {name} {found[name][-1].seconds:.3f} s")
    linear = linear_flops(engine.model)
    return {
        "product_flops_per_second": rate,
        "pieces": {v.title: in_pieces(engine, min(v.chunk or what.context, what.context)) for v in what.variants},
        "sides": {name: row(reads, what.context, linear, engine.geometry, rate) for name, reads in found.items()},
    }


def row(reads: list[Read], context: int, linear: int, geometry: Geometry, rate: float) -> dict[str, Any]:
    """Measured, roofline (operations over the rate of a matrix product) and their ratio; bytes of the last round."""
    taken, last = statistics.median(r.seconds for r in reads), reads[-1]
    flops = context * linear + 4 * geometry.group * geometry.head_dim * last.pairs
    floor = floor_ms(flops, rate)
    return {
        "ms": 1e3 * taken,
        "roofline_ms": floor,
        "ratio": 1e3 * taken / floor,
        "flops": flops,
        "tokens_per_second": context / taken,
        "rounds_ms": [1e3 * r.seconds for r in reads],
        "kv_footprint": last.kv_footprint,
        "cache_bytes": last.cache_bytes,
        "peak_bytes": last.peak_bytes,
        "trace_bytes": last.trace_bytes,
        "above_bytes": last.above_bytes,
    }


def in_pieces(engine: Engine, chunk: int) -> bool:
    """Whether such chunks are attended to in pieces (attention/pieces.py): on the triton backend, by cuDNN."""
    q = torch.empty(1, 1, chunk, engine.geometry.head_dim, dtype=engine.dtype, device=engine.device)
    return engine.backend.piecewise(q, q[0])


def tokens_of(engine: Engine, count: int) -> list[int]:
    """A prompt of random tokens."""
    size = engine.model.config.vocab_size
    found: list[int] = torch.randint(size, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    return found


def _ours(engine: Engine, variant: Variant, prompt: int) -> Read:
    geometry, base = engine.geometry, _mark(engine.device)
    plan = variant.plan(geometry, prompt)
    runner = engine.runner([plan], 1)
    sequence = runner.open(tokens_of(engine, prompt), variant.of(geometry), plan, Sampling(), 0)
    taken = seconds(partial(runner.prefill, sequence), engine.device)
    pool, trace = runner.cache.pool, sequence.trace
    reserved = pool.pages * pool.page_bytes
    found = Read(
        taken,
        trace.kv(),
        reserved if engine.device.type != "cpu" else pool.peak_bytes,  # address space is not memory (decision 0001)
        pool.peak_bytes,
        trace.peak() * trace.entry_bytes,
        trace.footprint().kv,
        _above(engine.device, base, reserved),
    )
    runner.cache.release(sequence.rows)
    del runner, sequence, pool
    collect()
    return found


@torch.inference_mode()
def _theirs(engine: Engine, prompt: int) -> Read:
    model, geometry, base = engine.model, engine.geometry, _mark(engine.device)
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([tokens_of(engine, prompt)], device=engine.device)
    detach(model, attach(model))
    try:
        once = partial(model, input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        taken = seconds(once, engine.device)
    finally:
        attach(model)
    dense = dense_bytes(geometry, engine.dtype.itemsize, prompt)
    pairs = sum(
        triangle(prompt) if w is None else triangle(min(w, prompt)) + max(0, prompt - w) * w
        for w in map(geometry.window, range(geometry.layers))
    )
    above = _above(engine.device, base, dense)
    del cache, once
    collect()
    return Read(taken, pairs * geometry.kv_heads, dense, dense, dense, 1.0, above)


def _mark(device: torch.device) -> int:
    """Bytes allocated now; the peak is counted from here on."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _above(device: torch.device, base: int, cache: int) -> int | None:
    return torch.cuda.max_memory_allocated(device) - base - cache if device.type == "cuda" else None
