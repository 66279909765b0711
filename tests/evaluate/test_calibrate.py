"""Calibration: queries recorded where RefreshKV looks at them, its rule replayed, a threshold for a share."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from kvfoot.core.errors import UsageError
from kvfoot.core.reading import Query, Read
from kvfoot.evaluate.calibrate import GRID, Checks, choose, record, settings_of
from kvfoot.methods.read.refreshkv import RefreshKV

EVERY, STEPS = 3, 60


class Wide(RefreshKV):
    """It decides as RefreshKV does, and always reads everything."""

    def read(self, state: Any, query: Query) -> tuple[Any, Read]:
        state, chosen = super().read(state, query)
        return state, replace(chosen, slots=None)


@pytest.fixture(scope="module")
def engine() -> tiny.Strict:
    return tiny.Strict(tiny.make("llama", layers=3))


@pytest.fixture(scope="module")
def checks(engine: tiny.Strict) -> Checks:
    return record(engine, [tiny.tokens(150, seed) for seed in (1, 2)], every=EVERY, steps=STEPS, chunk=40)


def test_cosines_are_those_of_the_layers_queries(engine: tiny.Strict, checks: Checks) -> None:
    """Against hooks on q_proj and plain rotations, in one pass of eager attention."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model, tokens = engine.model, tiny.tokens(150, 2)
    heard: list[torch.Tensor] = []
    hooks = [la.self_attn.q_proj.register_forward_hook(lambda m, i, o: heard.append(o)) for la in model.model.layers]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        model(torch.tensor([tokens]), use_cache=False)
        cos, sin = model.model.rotary_emb(heard[0], torch.arange(150)[None])
    model.set_attn_implementation(before)
    for hook in hooks:
        hook.remove()
    places = [89 + EVERY * i for i in range(STEPS // EVERY + 1)]
    assert checks.cosines.shape == (2, 3, 21, 21)
    for layer, q in enumerate(heard):
        turned, _ = apply_rotary_pos_emb(q.view(1, 150, 6, 8).transpose(1, 2), q.new_zeros(1, 1, 150, 8), cos, sin)
        mean = turned[0].mean(0)[places]
        expected = torch.nn.functional.cosine_similarity(mean[:, None], mean[None], dim=-1)
        np.testing.assert_allclose(checks.cosines[1, layer], expected.numpy(), atol=1e-5)
    assert checks.steps.shape == (3, 2 * 20)
    assert checks.steps[2, 20] == checks.cosines[1, 2, 0, 1]


@pytest.mark.parametrize(
    ("max_gap", "how"),
    [
        (None, {}),
        (9, {}),
        (None, {"query": "kv_head", "similarity": 0.0}),
        (None, {"query": "concat"}),
        (None, {"prerope": True}),
        (None, {"query": "concat", "prerope": True}),
    ],
)
def test_the_replayed_rule_is_the_method_s(engine: tiny.Strict, max_gap: int | None, how: dict[str, Any]) -> None:
    """Run with full attention in place of partial steps, its own decisions are the replayed ones."""
    method = Wide(every=EVERY, max_gap=max_gap, **{"similarity": 0.3} | how)
    run = tiny.run(engine, tiny.tokens(90, 7), method, budget=20, new=STEPS + 1)
    whole = run.tokens[: 90 + STEPS]
    fired = [p.refreshed for p in run.sequence.trace.passes if p.refreshed is not None]
    checks = record(engine, [whole], every=EVERY, steps=STEPS, query=method.query, prerope=method.prerope)
    shares = checks.shares(np.array([method.similarity]), max_gap)[0]
    found = np.mean([f[:, 0] for f in fired[EVERY - 1 :: EVERY]], 0)
    assert len(fired) == STEPS
    assert 0 < found.mean() < 1
    np.testing.assert_allclose(shares, found)


def test_shares_by_hand() -> None:
    cosines = np.zeros((1, 1, 4, 4), np.float32)
    cosines[0, 0, 1:, 0] = 0.9, 0.5, 0.2
    cosines[0, 0, 2:, 1] = 0.8, 0.7
    cosines[0, 0, 3, 2] = 0.6
    checks = Checks(cosines, 5)
    shares = checks.shares(np.array([0.1, 0.21, 0.55, 0.61, 0.95]), None)[:, 0]
    assert shares.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1])
    assert checks.shares(np.array([-1.0]), 10)[0, 0] == pytest.approx(1 / 3), "steps 5, 10, 15: 15 would be too late"


@pytest.mark.parametrize("share", [0.2, 0.4, 0.7])
def test_the_threshold_gives_the_share(checks: Checks, share: float) -> None:
    similarity, reached = choose(checks, share, 64)
    assert abs(reached - share) < 0.05
    assert similarity in np.round(GRID, 3)
    assert reached == pytest.approx(checks.shares(np.array([similarity]), 64).mean())


def test_what_the_settings_say(engine: tiny.Strict, checks: Checks) -> None:
    settings = settings_of(engine, checks, 0.4, {"every": EVERY}, {"texts": 2}, budget=64)
    assert settings.method == "refreshkv"
    assert settings.options["every"] == EVERY
    assert -1 < settings.options["similarity"] < 1
    assert settings.model["identity"] == engine.geometry.identity
    assert math.isclose(np.mean(settings.found["share"]["layers"]), settings.found["share"]["reached"], abs_tol=1e-3)
    assert settings.found["checks"] == 40
    assert sorted(settings.found["cosine"].values()) == list(settings.found["cosine"].values())


def test_one_head_that_differs_is_enough(engine: tiny.Strict) -> None:
    text = [tiny.tokens(150, 1)]
    each = record(engine, text, every=EVERY, steps=STEPS, query="kv_head", chunk=40)
    mean = record(engine, text, every=EVERY, steps=STEPS, chunk=40)
    assert each.shares(np.array([0.3]), None).mean() > mean.shares(np.array([0.3]), None).mean()


def test_texts_that_are_too_short(engine: tiny.Strict) -> None:
    with pytest.raises(UsageError, match="text 1 has 60 tokens: 60 steps need a prompt before them"):
        record(engine, [tiny.tokens(60)], every=3, steps=60)
