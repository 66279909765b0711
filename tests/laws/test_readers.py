"""The laws for methods that read few of the entries that they store, over every registered one."""

from typing import Any

import numpy as np
import pytest
import torch

import readers
import tiny
from kvfoot.core.reading import Reader
from kvfoot.core.registry import methods

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "quest": [{"page": 4, "skip": 0}, {"page": 16, "skip": 1, "group": "mean"}],
    "refreshkv": [{"every": 3, "similarity": 0.5}, {"every": 2, "mode": "score_only", "query": "kv_head", "sink": 2}],
    "tidaldecode": [{"skip": 0, "again": 1}, {"skip": 1, "again": 2}],
    "tokenselect": [{"sink": 2, "window": 5, "similarity": 0.3}, {"sink": 0, "window": 1, "similarity": 1.1}],
}
CASES = [
    (name, options) for name, cls in methods().items() if issubclass(cls, Reader) for options in OPTIONS.get(name, [{}])
]
MODELS = {"llama": {"layers": 4}, "qwen3": {"layers": 4, "head_dim": 16, "seed": 3}}


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_law_1_reading_everything_is_full_bit_for_bit(name: str, options: dict[str, Any], backend: str) -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4, backend=backend)
    full = tiny.run(engine, tiny.tokens(60), chunk=25, new=20)
    run = tiny.run(engine, tiny.tokens(60), name, options, budget=90, chunk=25, new=20)
    assert run.generated == full.generated
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(full.passes, run.passes, strict=True))


@pytest.mark.parametrize("chunk", [7, None])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "options"), CASES)
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
