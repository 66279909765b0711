"""Runs of readers that remember what every decode step of every row read, and the mask that follows from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import tiny
from kvfoot.engine import reading

Reads = dict[tuple[int, int, int], list[int]]
"""(layer, KV head, position of the query) -> positions read, in the order of their slots."""


@contextmanager
def watched(log: Reads) -> Iterator[None]:
    attend = reading._attend
    with pytest.MonkeyPatch.context() as patch:

        def spy(cache: Any, backend: Any, query: Any, slots: Tensor | None, held: Any) -> Any:
            at = cache.positions(query.rows, query.layer, query.heads)
            read = at if slots is None else at.gather(1, slots)
            for row, head in enumerate(query.heads):
                log[query.layer, head, query.rows.seen] = read[row].tolist()
            return attend(cache, backend, query, slots, held)

        patch.setattr(reading, "_attend", spy)
        yield


def run(
    method: Any, options: dict[str, Any], *, prompt: int = 90, new: int = 30, model: Any = None, **more: Any
) -> tuple[tiny.Run, Reads]:
    engine = tiny.Strict(model or tiny.llama(), page_size=4)
    log: Reads = {}
    with watched(log):
        found = tiny.run(engine, tiny.tokens(prompt, 3), method, options, new=new, **{"chunk": 40} | more)
    return found, log


def mask(found: tiny.Run, reads: Reads) -> Tensor:
    """bool [layers, kv_heads, T, T]: what was stored when a query came, and of a decode step what it read of that."""
    geometry, T = found.engine.geometry, found.passes[-1].stop
    if found.sequence.plan.evicts:
        seen = oracle.visibility(found.passes, geometry.layers, geometry.kv_heads, T)
        if found.sequence.plan.band is not None:
            seen = oracle.banded(seen, found.sequence.plan.band)
    else:
        seen = torch.ones(T, T, dtype=torch.bool).tril().repeat(geometry.layers, geometry.kv_heads, 1, 1)
    for (layer, head, query), read in reads.items():
        assert len(set(read)) == len(read), "an entry is read twice"
        assert seen[layer, head, query, read].all(), "an entry is read that is gone"
        seen[layer, head, query] = False
        seen[layer, head, query, read] = True
    return seen


def check(found: tiny.Run, reads: Reads) -> Tensor:
    """Law 2 for readers: the logits are those of a dense run that masks what was not read; its attention logits."""
    T = found.passes[-1].stop
    logits, scores = oracle.forward(found.engine.model, found.tokens[:T], mask(found, reads))
    gap = max((s.logits.double() - logits[s.stop - 1]).abs().max().item() for s in found.passes)
    assert gap < 1e-4
    return scores
