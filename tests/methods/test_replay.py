"""Readers whose tokens are read again by full attention: checked (verify) or put right (rectify)."""

from typing import Any

import pytest
import torch

import readers
import tiny
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method
from kvfoot.evaluate.perplexity import perplexity
from kvfoot.evaluate.sweep import Sweep

GAMMA = {1: 60, 4: 80, 7: 60}
"""Lengths of draft, and prompts for each."""
READERS: list[tuple[str, dict[str, Any]]] = [
    ("refreshkv", {"every": 3, "similarity": 0.3}),
    ("quest", {"page": 4, "skip": 0}),
    ("tokenselect", {"sink": 2, "window": 4}),
    ("tidaldecode", {"skip": 0, "again": 1}),
]


@pytest.mark.parametrize("gamma", GAMMA)
@pytest.mark.parametrize(("name", "options"), READERS)
def test_checked_drafts_are_full_attention_over_200_prompts(name: str, options: dict[str, Any], gamma: int) -> None:
    """200 prompts for each of four readers, shared out among three lengths of draft."""
    engine = tiny.Strict(tiny.make("llama", layers=3) if name == "tidaldecode" else tiny.llama(), page_size=4)
    prompts = [tiny.tokens(20 + i % 30, 1000 * gamma + i) for i in range(GAMMA[gamma])]
    full = engine.generate(prompts, max_new_tokens=8)
    found = engine.generate(prompts, method=name, options=options | {"verify": gamma}, budget=10, max_new_tokens=8)
    assert [r.tokens for r in found] == [r.tokens for r in full]
    bare = engine.generate(prompts, method=name, options=options, budget=10, max_new_tokens=8)
    assert [r.tokens for r in bare] != [r.tokens for r in full], "the drafts were right anyway"


def test_accepted_drafts_are_counted_as_what_they_are() -> None:
    """A draft that reads everything is always right: gamma passes of one token and one of gamma, for gamma tokens."""
    found, _ = readers.run("refreshkv", {"verify": 4}, budget=200, prompt=50, new=13)
    decoded = found.sequence.trace.passes[-15:]
    assert [(p.n, p.uncommitted) for p in decoded] == ([(0, 1)] * 4 + [(4, 0)]) * 3
    assert [p.seen for p in decoded[:5]] == [50, 51, 52, 53, 50]
    full, _ = readers.run("full", {}, prompt=50, new=13)
    assert found.generated == full.generated
    assert found.sequence.trace.dense() == full.sequence.trace.dense()
    transient = 4 * sum(1 + 50 + i for i in range(12))
    assert found.sequence.trace.kv() == full.sequence.trace.kv() + transient


def test_wrong_drafts_leave_nothing_behind() -> None:
    engine = tiny.Strict(tiny.llama(), page_size=1)
    found, _ = readers.run("refreshkv", {"verify": 6, "similarity": -2, "max_gap": None}, budget=6, new=20)
    found.runner.cache.check()
    stop = found.sequence.rows.seen
    assert found.kept()[0][0] == list(range(stop))
    assert stop == len(found.tokens) - 1
    wrong = [p.uncommitted for p in found.sequence.trace.passes if p.n and p.uncommitted]
    assert wrong, "no draft was wrong"
    found.runner.cache.release(found.sequence.rows)
    assert found.runner.cache.pool.owned == 0
    assert engine.page_size == 1


def test_rectified_entries_are_those_of_full_attention() -> None:
    """After a rectifying step the last tokens' keys in the upper layer are what dense reading makes of them."""
    every = 5
    options = {"similarity": -2, "max_gap": None, "rectify": every}
    found, _ = readers.run("refreshkv", options, budget=8, new=every + 1)
    bare, _ = readers.run("refreshkv", options | {"rectify": 0}, budget=8, new=every + 1)
    assert found.tokens[: 90 + every] == bare.tokens[: 90 + every]
    full = tiny.run(found.engine, found.tokens[: 90 + every], chunk=40, new=1)

    def keys(run: tiny.Run) -> torch.Tensor:
        with torch.inference_mode():
            return run.runner.cache.history(run.sequence.rows, 1, (0, 1))[0][:, 90 : 90 + every].clone()

    torch.testing.assert_close(keys(found), keys(full), atol=1e-5, rtol=0)
    assert (keys(bare) - keys(full)).abs().max() > 1e-2
    torch.testing.assert_close(found.passes[-1].logits, full.passes[-1].logits, atol=1e-4, rtol=0)


def test_rectifying_every_step_is_full_attention() -> None:
    full, _ = readers.run("full", {})
    found, _ = readers.run("refreshkv", {"rectify": 1}, budget=8)
    assert found.generated == full.generated


def test_what_cannot_be_read_again_is_refused() -> None:
    engine = tiny.Strict(tiny.llama())
    more: dict[str, Any] = {"method": "refreshkv", "budget": 8, "max_new_tokens": 4}
    with pytest.raises(UsageError, match="verify checks greedy drafts: set temperature=0, or verify=0"):
        engine.generate([tiny.tokens(20)], options={"verify": 3}, temperature=0.5, **more)
    windowed = tiny.Strict(
        tiny.make("qwen3", layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=1, head_dim=16)
    )
    with pytest.raises(UsageError, match="rectify takes tokens back, which layers with a window of their own cannot"):
        windowed.generate([tiny.tokens(20)], options={"rectify": 3}, **more)
    for option in ("verify", "rectify"):
        line = f"refreshkv: {option} reads tokens again, an evaluation reads them once: use kvfoot run"
        with pytest.raises(UsageError, match=line):
            Sweep(model="recall", tasks=("chain",), methods=(f"refreshkv:{option}=4",), lengths=(100,)).variants()
        with pytest.raises(UsageError, match=line):
            perplexity(engine, tiny.tokens(60), find_method("refreshkv", {option: 4}), tail=8)
    with pytest.raises(UsageError, match="verify leaves nothing to rectify: give one of them"):
        find_method("refreshkv", {"verify": 3, "rectify": 3})
