"""A shared prefill and forks of it: what each method keeps, and all that follows, is as if it had run alone."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from kvfoot.core.budget import Budget
from kvfoot.core.hooks import Method
from kvfoot.core.registry import method as find_method
from kvfoot.core.registry import methods
from kvfoot.engine.clock import Clock
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.shared import Member, Shared, groups
from tiny import MODELS, Strict, kept, make, tokens

N = 70
SMALL = {"window": 8, "skip": 1, "seed": 1, "stabilizers": 8, "local": 4}
"""Options that a prompt of 70 tokens and a model of two layers have room for."""


def chosen(name: str, **options: object) -> Method:
    known = [f.name for f in fields(methods()[name])]
    return find_method(name, {key: value for key, value in SMALL.items() if key in known} | options)


def posts(engine: Strict, chunk: int | None) -> list[Member]:
    """Every registered method that takes a size, at three sizes, and full attention."""
    found = [Member(chosen("full"), engine.plan(chosen("full"), Budget(), N, chunk, 8))]
    for name, cls in methods().items():
        if cls.budgeted:
            for limit in (Budget.of(keep=0.5), Budget.of(keep=0.25), Budget.of(budget=20)):
                found.append(Member(chosen(name), engine.plan(chosen(name), limit, N, chunk, 8)))
    return [member for member in found if member.shareable]


def windowed() -> Any:
    """Every layer but the first and the last has a window that the prompt leaves."""
    mixed = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    return make("gemma3_text", layers=4, seed=8, sliding_window=24, layer_types=mixed, rope_parameters=None)


@pytest.mark.parametrize(("model", "chunk"), [("llama", None), ("llama", 16), ("qwen2", 16), ("windowed", 16)])
def test_a_fork_of_a_shared_prefill_is_a_run_of_its_own(model: str, chunk: int | None) -> None:
    engine = Strict((MODELS | {"windowed": windowed})[model](), page_size=4)
    prompt, members = tokens(N), posts(engine, chunk)
    assert len({m.method.name for m in members}) >= 9
    found = groups(members)
    assert len(found) <= 2, "one pass for all, two where an observation window shifts the last chunk"
    for index in found:
        group = [members[i] for i in index]
        shared = Shared(group, engine.geometry)
        runner = engine.runner([shared.plan] * 3, 8)
        base = shared.read(runner, prompt)
        for member in group:
            mine = shared.fork(runner, base, member)
            alone = engine.runner([member.plan], 8)
            other = alone.open(prompt, member.method, member.plan, Sampling(), 0)
            logits = alone.prefill(other)
            assert torch.equal(base.logits, logits)
            assert np.array_equal(mine.rows.lens, other.rows.lens)
            assert kept(runner, mine) == kept(alone, other), member.method.name
            assert mine.trace.footprint() == other.trace.footprint()
            runner.decode([mine], [base.logits], 6, Sampling(), Clock())
            alone.decode([other], [logits], 6, Sampling(), Clock())
            assert mine.generated == other.generated
            assert mine.trace.footprint() == other.trace.footprint()
            runner.cache.check()
            runner.cache.release(mine.rows)
        runner.cache.release(base.sequence.rows)
        assert runner.cache.pool.owned == 0


def test_who_may_share() -> None:
    engine = Strict(make("llama"), page_size=4)

    def member(name: str, evict: str = "post", **options: object) -> Member:
        method = chosen(name, **options)
        return Member(method, engine.plan(method, Budget.of(keep=0.5, evict=evict), N, 16, 8))

    assert member("snapkv").shareable
    assert not member("snapkv", "chunk").shareable
    # a mass per head and a mass per group are planes of one name: they cannot travel together
    assert groups([member("h2o"), member("tova"), member("h2o", group="max")]) == [[0, 1], [2]]
    assert groups([member("h2o"), member("h2o")]) == [[0, 1]]
    # 70 = 4 x 16 + 6: a window of 8 takes the last 6 into the chunk before
    assert groups([member("tova"), member("snapkv"), member("streaming")]) == [[0, 2], [1]]
