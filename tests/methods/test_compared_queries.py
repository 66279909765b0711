"""What RefreshKV compares: queries as they attend or as they were before RoPE, joined over heads in three ways."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import readers
import tiny
from families import DECIDED, build
from kvfoot.core.reading import Query
from kvfoot.core.registry import method as find_method
from kvfoot.methods.read.refreshkv import RefreshKV

PROMPT, NEW = 40, 8


def plain(model: Any, run: Any) -> dict[int, list[Tensor]]:
    """Every pass's last query before RoPE, [heads, D] by layer, as the model's own rotation is given it.

    A layer without RoPE rotates nothing: it is missing.
    """
    module = sys.modules[type(model.get_decoder().layers[0].self_attn).__module__]
    heard: dict[int, list[Tensor]] = {}
    now = [0]
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda m, a, k, i=i: now.__setitem__(0, i), with_kwargs=True)
        for i, layer in enumerate(model.get_decoder().layers)
    ]
    rotate = module.apply_rotary_pos_emb
    with pytest.MonkeyPatch.context() as patch:

        def spy(q: Tensor, k: Tensor, *args: Any, **more: Any) -> Any:
            if k.numel():  # the model's, not the engine turning one back
                heard.setdefault(now[0], []).append(q[0, :, -1].clone())
            return rotate(q, k, *args, **more)

        patch.setattr(module, "apply_rotary_pos_emb", spy)
        run()
    for hook in hooks:
        hook.remove()
    return heard


class Listening(RefreshKV):
    """Notes every query that it is asked about."""

    log: list[tuple[int, Tensor, Tensor]] = []  # noqa: RUF012
    unrotates = True

    def _compared(self, query: Query) -> Tensor:
        self.log.append((query.layer, query.unrotated().clone(), query.q.clone()))
        return super()._compared(query)


@pytest.mark.parametrize("kind", DECIDED)
def test_queries_before_rope_are_the_model_s_own(kind: str) -> None:
    """In every family, norms and biases included; a layer without RoPE has one query, not two."""
    model = build(kind)
    engine = tiny.Strict(model, page_size=4)
    method = Listening(every=1, similarity=-2, max_gap=None, prerope=True)  # asked once a step
    method.log.clear()
    heard = plain(model, lambda: tiny.run(engine, tiny.tokens(PROMPT), method, budget=10, new=NEW, chunk=None))
    turned = 0
    for layer in engine.geometry.open_layers:
        own = [(before, after) for i, before, after in method.log if i == layer]
        assert len(own) >= NEW
        for step, (before, after) in enumerate(own[-(NEW - 1) :]):
            if layer in heard:
                theirs = heard[layer][-(NEW - 1) :][step].view(before.shape)
                torch.testing.assert_close(before, theirs.float(), atol=2e-5, rtol=1e-4)
                turned += int((before - after).abs().max() > 1e-2)
            else:
                assert torch.equal(before, after)
    assert turned or not set(heard) & set(engine.geometry.open_layers)


def joined(q: Tensor, query: str) -> list[Tensor]:
    """q [R, H, D]: what each comparison looks at."""
    if query == "mean":
        return [q.flatten(0, 1).mean(0)]
    return [q.flatten()] if query == "concat" else [own.mean(0) for own in q]


@pytest.mark.parametrize("prerope", [False, True])
@pytest.mark.parametrize("query", ["mean", "kv_head", "concat"])
def test_decisions_follow_the_compared_queries(query: str, prerope: bool) -> None:
    """A layer refreshes where one of its cosines with its last refresh is at most the threshold."""
    method = Listening(every=1, similarity=0.4 if query != "kv_head" else 0.0, prerope=prerope, query=query)  # type: ignore[arg-type]
    method.log.clear()
    found = tiny.run(tiny.Strict(tiny.llama(), page_size=4), tiny.tokens(PROMPT), method, budget=12, new=30)
    fired = [p.refreshed for p in found.sequence.trace.passes if p.refreshed is not None]
    for layer in range(2):
        seen, own = [], [(before if prerope else after) for i, before, after in method.log if i == layer]
        steps, i = [own[0]], 1  # a step that refreshes asks twice
        for step in fired:
            seen.append(bool(step[layer].all()))
            steps.append(own[i])
            i += 2 if seen[-1] else 1
        assert i == len(own)
        reference = joined(steps[0], query)
        for q, did in zip(steps[1:], seen, strict=True):
            now = joined(q, query)
            cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(now, reference, strict=True)]
            assert (min(cosines) <= method.similarity) == did
            reference = now if did else reference
        assert 0 < sum(seen) < len(seen)


def test_the_flags_decide_differently() -> None:
    """On one model and prompt; the default is the mean after RoPE."""
    assert (find_method("refreshkv").query, find_method("refreshkv").prerope) == ("mean", False)  # type: ignore[attr-defined]
    strides = set()
    for options in ({}, {"prerope": True}, {"query": "concat"}, {"query": "kv_head"}):
        found, _ = readers.run("refreshkv", {"every": 2, "similarity": 0.35} | options, budget=20)
        strides.add(tuple(found.sequence.trace.strides()))
    assert len(strides) == 4
