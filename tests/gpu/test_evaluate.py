"""Sweeps on a CUDA device: a shared prefill is a run of its own there, and one pass scores what a decode writes."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from kvfoot import Engine
from kvfoot.core.budget import Budget
from kvfoot.core.registry import method
from kvfoot.core.results import SampleResult
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.shared import Member, Shared
from kvfoot.evaluate.sweep import Sweep
from kvfoot.evaluate.worker import Job, Worker
from tiny import make
from tinyeval import Parrot, tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHARED = {
    "snapkv": {"window": 8},
    "adakv": {"window": 8},
    "keynorm": {"skip": 1},
    "tova": {},
    "h2o": {},
    "streaming": {},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fork_is_a_run_of_its_own(dtype: torch.dtype) -> None:
    engine = Engine(copy.deepcopy(make("llama", head_dim=32, hidden=192)).to("cuda", dtype), page_size=16)
    prompt = torch.randint(0, 97, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    members = []
    for name, options in SHARED.items():
        chosen = method(name, options)
        members.append(Member(chosen, engine.plan(chosen, Budget.of(keep=0.3), 300, 100, 8)))
    shared = Shared(members, engine.geometry)
    runner = engine.runner([shared.plan] * 3, 8)
    base = shared.read(runner, prompt)
    for member in members:
        mine = shared.fork(runner, base, member)
        alone = engine.runner([member.plan], 8)
        other = alone.open(prompt, member.method, member.plan, Sampling(), 0)
        assert torch.equal(alone.prefill(other), base.logits)
        assert np.array_equal(mine.rows.lens, other.rows.lens)
        for layer in range(engine.geometry.layers):
            for head in range(engine.geometry.kv_heads):
                found = [r.cache.positions(s.rows, layer, (head,))[0] for r, s in ((runner, mine), (alone, other))]
                same = set(found[0].tolist()) & set(found[1].tolist())
                # atomic sums order column scores anew each run, so that ties may fall either way
                assert len(same) >= 0.98 * len(found[0]), member.method.name
        runner.cache.release(mine.rows)


def test_one_pass_scores_what_a_decode_writes() -> None:
    """References are what full attention writes on a CPU."""
    task = Parrot("prefix", wrong=(1,))
    engine = Engine(copy.deepcopy(make("llama")).to("cuda"), tokenizer(), page_size=4)
    found: list[dict[Any, SampleResult]] = []
    for whole in (False, True):
        methods, knobs = ("full", "snapkv:window=8", "h2o"), {"keep": (0.5,)}
        sweep = Sweep("m", ("parrot",), methods, knobs, evict=("post", "chunk"), chunk=32, whole=whole)
        pairs = sweep.cells([task], "", "float32")
        cells, variants = [c for c, _ in pairs], [v for _, v in pairs]
        results: dict[Any, SampleResult] = {}
        wanted = {(c, i) for c in range(len(cells)) for i in range(3)}
        put = lambda c, r, results=results: results.__setitem__((c, r.index), r)  # noqa: E731
        Worker(engine, sweep).run(Job(task, 0, cells, variants, wanted), put)
        found.append(results)
    for key, one in found[0].items():
        assert one.score == found[1][key].score
        assert one.nll == pytest.approx(found[1][key].nll, abs=1e-3)
    assert {one.score for (c, i), one in found[0].items() if cells[c].is_full and i != 1} == {1.0}
