"""A synthetic cache is the one that the method would have left: lengths, pages, bytes, and what decoding does to it."""

from typing import Any

import numpy as np
import pytest

from families import build
from kvfoot import Engine
from kvfoot.attention import naive_layer
from kvfoot.bench.sides import Ours
from kvfoot.bench.synthetic import shortened
from kvfoot.bench.variant import Variant, admitted, kept
from kvfoot.core.errors import PoolExhausted, UsageError
from kvfoot.engine.runner import peak_pages
from kvfoot.models.fusion import Fuse
from tape import Rerun

VARIANTS = [
    Variant(chunk=32),
    Variant("snapkv", {"window": 8}, "0.25", chunk=32),
    Variant("snapkv", {"window": 8}, "0.25", evict="chunk", chunk=48),
    Variant("snapkv", {"window": 8}, budget=20),
    Variant("pyramidkv", {"window": 4}, "0.25"),
    Variant("h2o", {}, "0.25"),
    Variant("tova", {}, "0.25"),
    Variant("keynorm", {"skip": 1}, "0.25"),
    Variant("streamingllm", {}, "0.25"),
    Variant("heads", {"roles": "random", "sparsity": 0.5, "sink": 2, "window": 8}, chunk=32),
    Variant("heads", {"roles": "random", "sparsity": 0.5, "sink": 2, "window": 8, "exact": True}, chunk=32),
    Variant("refreshkv", {"schedule": "fixed", "every": 3}, budget=16),
    Variant("quest", {}, budget=32),
]
PROMPT, LATER = 150, 9


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.title)
def test_as_after_a_prompt_that_was_read(variant: Variant, kind: str) -> None:
    """gemma3_text: with layers whose window of 24 tokens is no method's business."""
    engine = Engine(build(kind), poison=True)
    real, made = (Ours(engine, variant, PROMPT, 1, LATER, synthetic) for synthetic in (False, True))
    for side in (real, made):
        side.decode(LATER - 1)
        side.runner.cache.check()
        side.sequences[0].verify()
    lens = [side.sequences[0].rows.lens for side in (real, made)]
    assert np.array_equal(*lens)
    assert real.entries == made.entries
    assert real.held_bytes == made.held_bytes
    assert real.sequences[0].rows.seen == made.sequences[0].rows.seen == PROMPT + LATER
    if variant.method not in ("refreshkv", "quest"):
        assert real.kv_bytes() == made.kv_bytes()


def test_a_side_without_fusion_beside_one_with_it() -> None:
    SMALL = {"norm": 7, "mlp": 3, "rope": 3}
    engine = Engine(build("llama"), graph=Rerun, fuse=Fuse(naive_layer))
    sides = [Ours(engine, Variant(fuse=level), PROMPT, 1, LATER, False) for level in (None, 0, 3)]
    assert [side.name for side in sides] == ["full", "full fuse=0", "full fuse=3"]
    assert [side.facts()["fused"] for side in sides] == [SMALL, {}, {**SMALL, "product": 3 * 7}]
    for side in sides:
        side.decode(LATER - 1)
        assert side.runner.graphs is not None
        assert side.runner.graphs.steps == LATER
    assert len({tuple(side.sequences[0].generated) for side in sides}) == 1
    assert Ours(Engine(build("llama")), Variant(), PROMPT, 1, LATER, True).facts()["fused"] == {}


def test_keys_and_values_are_random_and_positions_spread() -> None:
    engine = Engine(build("llama"))
    side = Ours(engine, Variant("h2o", {}, "0.25"), 101, 1, 4, True)
    rows, cache = side.sequences[0].rows, side.runner.cache
    assert rows.lens[0].tolist() == [25, 25]
    k, v = cache.history(rows, 0, (0, 1))
    assert 0.8 < float(k[:, :24].std()) < 1.2
    assert not np.array_equal(k[0, :24], v[0, :24])
    assert cache.positions(rows, 0, (0,))[0].tolist() == [*(np.arange(24) * 100 // 24).tolist(), 100]
    mass = cache.plane(rows, 0, (0,), "mass")
    assert float(mass.min()) >= 0
    assert float(mass.std()) > 0.1


def test_a_division_by_scores_is_refused() -> None:
    engine = Engine(build("llama"))
    adakv = Variant("adakv", {"window": 8}, "0.25")
    with pytest.raises(UsageError, match="--fill prompt"):
        Ours(engine, adakv, PROMPT, 1, LATER, True)
    side = Ours(engine, adakv, PROMPT, 1, LATER, False)
    side.decode(LATER - 1)
    assert side.facts()["entries_per_row"] == round(PROMPT / 4)


@pytest.mark.parametrize(
    "variant", [VARIANTS[0], VARIANTS[2], Variant("snapkv", {"window": 8}, "0.25", chunk=32)], ids=lambda v: v.title
)
def test_as_many_sequences_as_the_pool_admits(variant: Variant) -> None:
    """Prompts read for real, one after the other, fit the pool; one more does not."""
    model = build("llama")
    g = Engine(model).geometry
    plan = variant.plan(g, PROMPT)
    left = shortened(plan, g, PROMPT)
    assert np.array_equal(kept(left, g), kept(plan, g))
    own, page = peak_pages(left, g, 16, LATER), 2 * 8 * 4 * 16 + (4 * 16 if plan.planes else 0)
    pages = max(own, peak_pages(plan, g, 16, 0)) + 2 * own
    assert admitted(plan, left, g, 16, pages, LATER) == 3
    assert admitted(plan, left, g, 16, pages - 1, LATER) == 2
    engine = Engine(model, kv_memory=pages * page)
    side = Ours(engine, variant, PROMPT, 3, LATER, True)
    side.decode(LATER - 1)
    side.close()
    with pytest.raises(PoolExhausted):
        Ours(engine, variant, PROMPT, 4 + pages // own - 3, LATER, True)
    with pytest.raises(UsageError, match="one sequence needs"):
        admitted(plan, left, g, 16, own - 1, LATER)
    runner = engine.runner([left], 1)
    from kvfoot.engine.sampler import Sampling

    for i in range(3):
        runner.prefill(runner.open(_tokens(), variant.of(g), plan, Sampling(), i))


def _tokens() -> Any:
    return [(7 * i) % 97 for i in range(PROMPT)]
