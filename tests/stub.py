"""Cheap runs of any length: a one-layer model and attention that costs nothing, with everything else as it is."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tiny
from kvfoot.attention.state import State
from kvfoot.cache.kv import KVCache
from kvfoot.cache.pool import Pool
from kvfoot.core.budget import Cut, PromptPass
from kvfoot.core.hooks import POSITION, Keep, Method, Plan, Seen
from kvfoot.engine.clock import Clock
from kvfoot.engine.engine import Engine
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence


class Zeros:
    """A backend whose answers are all zero."""

    name = "zeros"

    @staticmethod
    def attend(q_RHnD: Tensor, k_RmD: Tensor, v_RmD: Tensor, scale: float, causal: bool, visible: Any = None) -> State:
        return State(torch.zeros_like(q_RHnD), torch.zeros(q_RHnD.shape[:3]))

    @staticmethod
    def decode(q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor, rows: Any, scale: float) -> State:
        return State(torch.zeros_like(q_RHD), torch.zeros(q_RHD.shape[:2]))

    @staticmethod
    def piecewise(q_GHnD: Tensor, k_GnD: Tensor) -> bool:
        return False

    @staticmethod
    def window_scores(q_RHwD: Tensor, k_RmD: Tensor, scale: float) -> Tensor:
        return torch.zeros(*q_RHwD.shape[:2], k_RmD.shape[1])

    @staticmethod
    def column_scores(q_RHnD: Tensor, k_RmD: Tensor, lse_RHn: Tensor, scale: float) -> Tensor:
        return torch.zeros(*q_RHnD.shape[:2], k_RmD.shape[1])


@dataclass(frozen=True)
class Newest(Method):
    """Keeps the newest entries that a plan allows. Registered nowhere."""

    def keep(self, seen: Seen) -> Keep:
        return Keep.top(seen.positions.float(), seen.keep)


@cache
def engine(kv_heads: int = 1, layers: int = 1) -> Engine:
    model = tiny.make(
        "llama", layers=layers, kv_heads=kv_heads, group=1, head_dim=2, hidden=2 * kv_heads, positions=1 << 17, peak=1.0
    )
    return Engine(model, backend=Zeros(), kv_memory=1 << 20)  # type: ignore[arg-type]


def spans(prompt: int, chunk: int) -> list[tuple[int, int]]:
    return [(a, min(a + chunk, prompt)) for a in range(0, prompt, chunk)]


def counts(engine: Engine, *per_head: int) -> np.ndarray:
    """One number for all KV heads, or one each."""
    shape = (engine.geometry.layers, engine.geometry.kv_heads)
    return np.broadcast_to(np.array(per_head, np.int32), shape).copy()


def chunked(engine: Engine, prompt: int, chunk: int, kept: Any) -> Plan:
    """Keeps kept(n) entries of every chunk of n tokens; decode appends."""
    passes = [PromptPass(a, b, Cut("new", counts(engine, kept(b - a)))) for a, b in spans(prompt, chunk)]
    return Plan(tuple(passes), None, (POSITION,))


def post(engine: Engine, prompt: int, chunk: int, kept: int) -> Plan:
    """Keeps `kept` entries after the whole prompt; decode appends."""
    cut = Cut("all", counts(engine, kept))
    passes = [PromptPass(a, b, cut if b == prompt else None) for a, b in spans(prompt, chunk)]
    return Plan(tuple(passes), None, (POSITION,))


def held(engine: Engine, prompt: int, chunk: int, *per_head: int) -> Plan:
    """Every KV head holds at most its number after every pass, decode included."""
    cut = Cut("all", counts(engine, *per_head))
    return Plan(tuple(PromptPass(a, b, cut) for a, b in spans(prompt, chunk)), cut, (POSITION,))


def full(prompt: int, chunk: int) -> Plan:
    return Plan(tuple(PromptPass(a, b) for a, b in spans(prompt, chunk)))


def measure(engine: Engine, prompt: int, later: int, plans: dict[str, Plan]) -> dict[str, Sequence]:
    """Run all plans beside each other: `later` passes of one token follow the prompt. Pages are not looked at."""
    pool = Pool(engine.geometry.head_dim, engine.dtype, planes=(POSITION,), memory=1 << 28)
    runner = Runner(engine.model, engine.backend, KVCache(pool, engine.geometry), frozenset())
    sampling, tokens = Sampling(), [i % tiny.VOCAB for i in range(prompt)]
    sequences = {name: runner.open(tokens, Newest(), plan, sampling, i) for i, (name, plan) in enumerate(plans.items())}
    logits = [runner.prefill(s) for s in sequences.values()]
    runner.decode(list(sequences.values()), logits, later + 1, sampling, Clock())
    return sequences
