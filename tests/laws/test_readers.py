"""The laws for methods that read few of the entries that they store, over every registered one."""

from typing import Any

import numpy as np
import pytest
import torch

import readers
import tiny
from kvfoot.core.reading import Reader
from kvfoot.core.registry import method as find_method
from kvfoot.core.registry import methods

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "quest": [{"page": 4, "skip": 0}, {"page": 16, "skip": 1, "group": "mean"}],
    "refreshkv": [{"every": 3, "similarity": 0.5}, {"every": 2, "mode": "score_only", "query": "kv_head", "sink": 2}],
    "retroattention": [{"page": 4, "skip": 0}, {"page": 8, "skip": 1, "window": 4}],
    "tidaldecode": [{"skip": 0, "again": 1}, {"skip": 1, "again": 2}],
    "tokenselect": [{"sink": 2, "window": 5, "similarity": 0.3}, {"sink": 0, "window": 1, "similarity": 1.1}],
}
CASES = [
    (name, options) for name, cls in methods().items() if issubclass(cls, Reader) for options in OPTIONS.get(name, [{}])
]
CORRECTING = ("retroattention",)
"""Tokens are read more than once, so no mask stands for a run: tests/methods/test_retroattention.py has its own."""
MODELS = {"llama": {"layers": 4}, "qwen3": {"layers": 4, "head_dim": 16, "seed": 3}}


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_law_1_reading_everything_is_full_bit_for_bit(name: str, options: dict[str, Any], backend: str) -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4, backend=backend)
    full = tiny.run(engine, tiny.tokens(60), chunk=25, new=20)
    run = tiny.run(engine, tiny.tokens(60), name, options, budget=90, chunk=25, new=20)
    assert run.generated == full.generated
    limit = 1e-5 if name in CORRECTING else 0
    for a, b in zip(full.passes, run.passes, strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=limit, rtol=0)


@pytest.mark.parametrize("chunk", [7, None])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] not in CORRECTING])
def test_laws_2_and_9_what_is_not_read_is_masked_and_what_is_read_is_counted(
    name: str, options: dict[str, Any], model: str, chunk: int | None
) -> None:
    run, reads = readers.run(name, options, model=tiny.make(model, **MODELS[model]), budget=24, chunk=chunk)
    readers.check(run, reads)
    assert run.kept()[0][0] == list(range(run.passes[-1].stop)), "everything is stored"
    decoded = run.sequence.trace.passes[-29:]
    for i, p in enumerate(decoded):
        for (layer, head), pairs in np.ndenumerate(p.loaded):
            assert pairs == len(reads[layer, head, 90 + i])
    few = sum(len(slots) for slots in reads.values()) / sum(query + 1 for _, _, query in reads)
    assert few < 0.95, "nothing was left out"
    assert run.sequence.trace.footprint().kv == 1


@pytest.mark.parametrize(("name", "options"), CASES)
def test_laws_8_and_10_a_batch_gives_each_prompt_its_own_tokens(name: str, options: dict[str, Any]) -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4)
    prompts = [tiny.tokens(n, n) for n in (40, 75, 12, 61)]
    more: dict[str, Any] = {"method": name, "options": options, "budget": 24, "chunk": 16, "max_new_tokens": 25}
    batch = engine.generate(prompts, **more)
    assert [r.tokens for r in batch] == [engine.generate([p], **more)[0].tokens for p in prompts]


EVICTORS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("snapkv", {"window": 3, "snapkv.kernel": 3}, {"keep": 0.5}),
    ("snapkv", {"window": 3, "snapkv.kernel": 3}, {"keep": 0.5, "evict": "chunk"}),
    ("adakv", {"adakv.window": 3, "adakv.kernel": 3}, {"keep": 0.4}),
    ("keynorm", {"keynorm.skip": 0}, {"keep": 0.5, "evict": "chunk"}),
    ("heads", {"roles": "01/10", "heads.sink": 2, "heads.window": 6}, {}),
    ("heads", {"roles": "01/11", "heads.sink": 1, "heads.window": 30, "exact": True}, {}),
]
OVER = [
    ("refreshkv", {"every": 3, "similarity": 0.5}),
    ("refreshkv", {"every": 2, "mode": "score_only", "refreshkv.sink": 2}),
    ("quest", {"page": 4, "quest.skip": 0}),
]
COMPOSED = [(f"{reader}+{evictor}", {**own, **kept}, mode) for reader, own in OVER for evictor, kept, mode in EVICTORS]


@pytest.mark.parametrize(("name", "options", "mode"), COMPOSED)
def test_law_1_reading_all_that_is_kept_is_the_method_that_evicts(
    name: str, options: dict[str, Any], mode: dict[str, Any]
) -> None:
    """Bit for bit, but for ragged rows and roles, where rows are attended in other groups."""
    _, evictor = name.split("+")
    engine = tiny.Strict(tiny.llama(), page_size=4)
    whole = find_method(name, options | {"size": 120})
    alone = tiny.run(engine, tiny.tokens(75), whole.evictor, chunk=25, new=12, **mode)
    run = tiny.run(engine, tiny.tokens(75), whole, chunk=25, new=12, **mode)
    assert run.generated == alone.generated
    assert run.kept() == alone.kept()
    limit = 1e-5 if evictor in ("adakv", "heads") else 0
    for a, b in zip(alone.passes, run.passes, strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=limit, rtol=0)


@pytest.mark.parametrize(("name", "options", "mode"), COMPOSED)
def test_laws_2_and_9_what_is_evicted_or_not_read_is_masked(
    name: str, options: dict[str, Any], mode: dict[str, Any]
) -> None:
    run, reads = readers.run(name, options | {"size": 16}, chunk=20, **mode)
    readers.check(run, reads)
    decoded = run.sequence.trace.passes[-29:]
    few = all_ = 0
    for i, p in enumerate(decoded):
        for (layer, head), pairs in np.ndenumerate(p.loaded):
            stored = p.before[layer, head] + 1
            if (layer, head, 90 + i) in reads:
                assert pairs == len(reads[layer, head, 90 + i]) <= stored
                few, all_ = few + pairs, all_ + stored
            else:
                assert options.get("roles", "11/11")[3 * layer + head] == "0"
                assert pairs == stored, "a streaming head reads what it holds"
    assert few / all_ < 0.8, "nothing was left out"
    assert all(1 < stride < 29 for stride in run.sequence.trace.strides()) or name.startswith("quest")
    lengths = {len(row) for layer in run.passes[-30].kept for row in layer}
    if "roles" in options:
        assert lengths == {90, options["heads.sink"] + options["heads.window"]}
        return
    assert sum(len(row) for layer in run.passes[-30].kept for row in layer) == 4 * 90 * mode["keep"]
    assert (len(lengths) > 1) == name.endswith("adakv")


@pytest.mark.parametrize(("name", "options", "mode"), [*COMPOSED[2::6], *COMPOSED[4::6]])
def test_laws_8_and_10_a_batch_of_compositions(name: str, options: dict[str, Any], mode: dict[str, Any]) -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4)
    prompts = [tiny.tokens(n, n) for n in (40, 75, 61)]
    more: dict[str, Any] = {"method": name, "options": options | {"size": 12}, "chunk": 16, "max_new_tokens": 20}
    batch = engine.generate(prompts, **more, **mode)
    assert [r.tokens for r in batch] == [engine.generate([p], **more, **mode)[0].tokens for p in prompts]
