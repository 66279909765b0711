"""Batches decoded by replayed steps and by launched ones, side by side."""

from dataclasses import dataclass
from typing import Any

import pytest

import tiny
from kvfoot.core.budget import Budget
from kvfoot.core.hooks import Method
from kvfoot.core.reading import Reader
from kvfoot.core.registry import methods
from kvfoot.engine.clock import Clock
from kvfoot.engine.graphable import why_eager
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from lawtable import Case, cases
from tape import Tape

NEW = 14
EAGER = {"locret", "retroattention", "wgkv"}
"""Stepped without a graph, whatever their options."""


@dataclass
class Done:
    """A batch decoded to its end, its rows still there."""

    sequences: list[Sequence]
    kept: list[Any]
    steps: int
    tapes: list[Tape]

    @property
    def tokens(self) -> list[list[int]]:
        return [s.generated for s in self.sequences]


def decode(
    model: Any,
    name: str | Method,
    options: dict[str, Any] | None = None,
    *,
    lengths: tuple[int, ...] = (61, 30, 47),
    new: int = NEW,
    replayed: bool = True,
    sampling: Sampling | None = None,
    page_size: int = 4,
    stop: frozenset[int] = frozenset(),
    record: Any = Tape,
    backend: str | None = None,
    fuse: Any = None,
    **mode: Any,
) -> Done:
    """record: what replays are recorded with, `Tape` on the CPU and True (CUDA graphs) on a GPU. fuse: the engine's."""
    Tape.made.clear()
    engine = tiny.Strict(model, page_size=page_size, backend=backend, graph=record if replayed else False, fuse=fuse)
    chosen, sampling = engine.method(name, options), sampling or Sampling()
    prompts = [tiny.tokens(n, n) for n in lengths]
    plans = [engine.plan(chosen, Budget.of(**mode), n, 20, new) for n in lengths]
    runner = engine.runner(plans, new)
    runner.stop = stop
    sequences = [
        runner.open(p, chosen, plan, sampling, i) for i, (p, plan) in enumerate(zip(prompts, plans, strict=True))
    ]
    logits = [runner.prefill(s) for s in sequences]
    runner.decode(sequences, logits, new, sampling, Clock())
    runner.cache.check()
    steps = runner.graphs.steps if runner.graphs else 0
    return Done(sequences, [tiny.kept(runner, s) for s in sequences], steps, list(Tape.made))


def same(model: Any, name: str | Method, options: dict[str, Any] | None = None, **more: Any) -> Done:
    """Replayed and launched agree in everything; the replayed one comes back."""
    one, two = (decode(model, name, options, replayed=replayed, **more) for replayed in (True, False))
    assert one.tokens == two.tokens
    assert one.kept == two.kept
    for mine, theirs in zip(one.sequences, two.sequences, strict=True):
        assert mine.trace.footprint() == theirs.trace.footprint()
        assert mine.trace.strides() == pytest.approx(theirs.trace.strides(), nan_ok=True)
        assert (mine.rows.lens == theirs.rows.lens).all()
        assert mine.rows.ordered == theirs.rows.ordered
    return one


def graphable(name: str, options: dict[str, Any], mode: dict[str, Any]) -> bool:
    engine = tiny.Strict(tiny.llama())
    chosen = engine.method(name, options)
    return why_eager(chosen, engine.plan(chosen, Budget.of(**mode), 61, 20, NEW)) is None


READERS: list[Case] = [
    ("refreshkv", {"every": 3, "schedule": "fixed"}, {"budget": 24}),
    ("refreshkv", {"every": 2, "similarity": 0.6, "max_gap": 6}, {"budget": 24}),
    ("refreshkv", {"every": 2, "similarity": 0.6, "mode": "score_only", "sink": 2}, {"budget": 24}),
    ("refreshkv", {"every": 2, "similarity": 0.6, "query": "kv_head"}, {"budget": 24}),
    ("refreshkv", {"every": 2, "similarity": 0.6, "query": "concat"}, {"budget": 24}),
    ("tidaldecode", {"skip": 0, "again": 1}, {"budget": 24}),
    ("tokenselect", {"sink": 2, "window": 5, "similarity": 0.5}, {"budget": 24}),
    ("tokenselect", {"sink": 0, "window": 1, "similarity": 1.1}, {"budget": 24}),
    ("quest", {"page": 4, "skip": 0}, {"budget": 24}),
    ("quest", {"page": 8, "skip": 1, "group": "mean"}, {"budget": 24}),
    ("quest", {"page": 3, "skip": 0}, {"budget": 17}),
    ("quest+adakv", {"page": 4, "quest.skip": 0, "size": 12, "window": 4}, {"keep": 0.7}),
    ("refreshkv+snapkv", {"size": 12, "every": 2, "similarity": 0.6, "window": 4}, {"keep": 0.7}),
    ("refreshkv+adakv", {"size": 12, "every": 2, "similarity": 0.6, "window": 4}, {"keep": 0.7}),
]
ALL = [c for c in cases() if c[0] not in EAGER and not issubclass(methods()[c[0]], Reader)] + READERS
