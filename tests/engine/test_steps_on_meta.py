"""A step on the device "meta", which has no numbers: nothing in it can read one, and nothing comes from elsewhere."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from families import build
from kvfoot.attention import naive_layer
from kvfoot.core.budget import Budget
from kvfoot.engine.resident import Resident
from kvfoot.engine.sampler import Sampling
from kvfoot.models.bridge import attach
from kvfoot.models.fusion import Fuse, Fusion
from lawtable import label
from replayed import ALL
from tape import HostRead, NoLists, OneDevice, Tape


def to_meta(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.to("meta")
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return dataclasses.replace(x, **{f.name: to_meta(getattr(x, f.name)) for f in dataclasses.fields(x)})
    if isinstance(x, dict):
        return {key: to_meta(value) for key, value in x.items()}
    return [to_meta(value) for value in x] if isinstance(x, list) else x


def moved(resident: Resident, model: Any) -> Resident:
    """A resident step whose buffers, pool, states and weights are on "meta"."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is not None:
                    here = value.to("meta")
                    tensors[name] = torch.nn.Parameter(here, False) if tensors is module._parameters else here
    attach(model)
    b, pool = resident.buffers, resident.cache.pool
    b.words, b.tables = to_meta(b.words), to_meta(b.tables)
    b.tokens, b.fired, b.answer = to_meta([b.tokens, b.fired, b.answer])
    pool.k, pool.v, pool.planes = to_meta(pool.k), to_meta(pool.v), to_meta(pool.planes)
    resident.scopes, resident.model = to_meta(resident.scopes), model
    if resident.ranks is not None:
        tables = resident.ranks.rotation._tables
        for key, (cos, sin) in tables.items():
            tables[key] = cos.to("meta"), sin.to("meta")
    if resident.lists is not None:
        standing = resident.lists.standing
        standing.groups, standing.rings = to_meta(standing.groups), to_meta(standing.rings)
    return resident


def attached(name: str, options: dict[str, Any], mode: dict[str, Any], sampling: Sampling, kind: str) -> Resident:
    """After a prompt, before the first step."""
    engine = tiny.Strict(build(kind), page_size=4, graph=Tape)
    chosen = engine.method(name, options)
    plan = engine.plan(chosen, Budget.of(**mode), 61, 20, 8)
    runner = engine.runner([plan], 8)
    sequence = runner.open(tiny.tokens(61), chosen, plan, sampling, 0)
    runner.prefill(sequence)
    sequence.tokens.append(3)
    assert runner.graphs is not None
    resident = runner.graphs.suiting([sequence], 8, sampling)
    resident.attach([sequence])
    return resident


@pytest.mark.parametrize(("name", "options", "mode"), ALL, ids=label)
def test_every_tensor_of_a_step_is_on_its_device(name: str, options: dict[str, Any], mode: dict[str, Any]) -> None:
    resident = moved(attached(name, options, mode, Sampling(0.8, 0.9, top_k=20), "llama"), build("llama"))
    for kind, step in (("quiet", 1), ("check", 6)) if resident.lists else (("quiet", 1),):
        if resident.lists:
            resident.lists.steps[kind] = step
        with NoLists(), OneDevice():
            resident.run(kind)


@pytest.mark.parametrize("kind", ["gemma3_text", "cohere2", "qwen3-window", "phi3"])
def test_of_other_families_too(kind: str) -> None:
    resident = moved(attached("h2o", {}, {"keep": 0.5}, Sampling(), kind), build(kind))
    with NoLists(), OneDevice():
        resident.run("quiet")


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "olmo2", "phi3", "gemma3_text"])
def test_of_a_fused_step_too(kind: str, level: int) -> None:
    resident = moved(attached("h2o", {}, {"keep": 0.5}, Sampling(), kind), build(kind))
    resident.fusion = Fusion(resident.model, Fuse(naive_layer, level))
    with NoLists(), OneDevice():
        resident.run("quiet")


def test_what_would_be_refused() -> None:
    x, index, here = torch.ones(3, 4, device="meta"), [0, 2], torch.ones(4)
    for ask in (
        lambda: x[index],
        lambda: x + here,
        lambda: x.copy_(torch.ones(3, 4)),
        lambda: x.new_tensor([1.0]),
        lambda: torch.arange(3),
        x.cpu,
    ):
        with NoLists(), OneDevice(), pytest.raises((HostRead, RuntimeError)):
            ask()
