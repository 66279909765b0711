"""Perplexity and fidelity on a tiny model, against Hugging Face's own logits and against stepping."""

import itertools
import math

import pytest
import torch

from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method
from kvfoot.engine.engine import Engine
from kvfoot.engine.sampler import Sampling
from kvfoot.evaluate import forced
from kvfoot.evaluate.fidelity import baseline, fidelity
from kvfoot.evaluate.perplexity import Perplexity, perplexity
from tiny import make

TOKENS = torch.randint(0, 97, (300,), generator=torch.Generator().manual_seed(4)).tolist()
FULL = method("full")


@pytest.fixture(scope="module")
def engine():
    return Engine(make(), page_size=4, poison=True)


@pytest.fixture(scope="module")
def reference():
    """Nats of every token but the first, by the model's own attention."""
    with torch.inference_mode():
        logits = make()(torch.tensor([TOKENS])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(TOKENS[1:]), reduction="none").tolist()


@pytest.mark.parametrize(("chunk", "tail"), [(64, 50), (None, 1), (7, 299)])
def test_full_attention_has_the_models_own_nats(engine, reference, chunk, tail):
    found = perplexity(engine, TOKENS, FULL, chunk=chunk, tail=tail)
    assert found.nats == pytest.approx(reference, abs=1e-4)
    assert found.whole == pytest.approx(math.exp(sum(reference) / 299), rel=1e-5)
    assert found.of_tail == pytest.approx(math.exp(sum(reference[-tail:]) / tail), rel=1e-4)
    assert found.record.footprint.kv == 1
    assert found.record.tokens == {"prompt": 300 - tail, "generated": tail}


def test_chunked_eviction_acts_inside_the_prompt(engine, reference):
    some = Budget.of(keep=0.25, evict="chunk")
    found = perplexity(engine, TOKENS, method("snapkv", {"window": 8}), some, chunk=64, tail=44)
    same = [abs(a - b) < 1e-4 for a, b in zip(found.nats, reference, strict=True)]
    assert all(same[:63])  # the first chunk saw everything
    assert not any(all(same[start : start + 64]) for start in (64, 128, 192))
    assert found.record.footprint.kv < 0.75
    post = perplexity(engine, TOKENS, method("snapkv", {"window": 8}), Budget.of(keep=0.25), chunk=64, tail=44)
    assert post.nats[:255] == pytest.approx(reference[:255], abs=1e-4)
    assert post.nats[256:] != pytest.approx(reference[256:], abs=1e-3)


@pytest.mark.parametrize(("name", "options"), [("snapkv", {"window": 8}), ("h2o", {}), ("streaming", {}), ("tova", {})])
def test_one_pass_is_what_stepping_gives_and_decode_eviction_is_stepped(engine, name, options, monkeypatch):
    chosen = method(name, options)
    budget = Budget.of(keep=0.5)
    usual = perplexity(engine, TOKENS, chosen, budget, chunk=64, tail=60)
    sizes = []
    original = forced._pass
    monkeypatch.setattr(forced, "_pass", lambda r, s, t, *c: (sizes.append(len(t)), original(r, s, t, *c))[1])
    monkeypatch.setattr(forced, "steps_at_decode", lambda sequence: True)
    stepped = perplexity(engine, TOKENS, chosen, budget, chunk=64, tail=60)
    assert sizes[-59:] == [1] * 59
    assert usual.nats == pytest.approx(stepped.nats, abs=1e-4)
    assert usual.record.footprint.kv == pytest.approx(stepped.record.footprint.kv, abs=2e-2)


@pytest.mark.parametrize(
    ("name", "options", "budget"),
    [
        ("snapkv", {"window": 8}, Budget.of(keep=0.5)),
        ("snapkv", {"window": 8, "patch": True}, Budget.of(keep=0.5, evict="chunk")),
        ("adakv", {"window": 8}, Budget.of(keep=0.5)),
        ("streamingllm", {}, Budget.of(keep=0.5)),
        ("refreshkv", {}, Budget()),
    ],
)
def test_the_tail_is_what_feeding_token_by_token_gives(engine, name, options, budget):
    chosen = method(name, options)
    found = perplexity(engine, TOKENS, chosen, budget, chunk=64, tail=20)
    plan = engine.plan(chosen, budget, 280, 64, 20)
    runner = engine.runner([plan], 20)
    sequence = runner.open(TOKENS[:280], chosen, plan, Sampling(), 0)
    logits = runner.prefill(sequence)
    nats = [float(-logits.float().log_softmax(0)[TOKENS[280]])]
    for token, target in itertools.pairwise(TOKENS[280:]):
        logits = runner.feed(sequence, [token], None)
        nats.append(float(-logits.float().log_softmax(0)[target]))
    assert found.nats[-20:] == pytest.approx(nats, abs=1e-4)


def test_buckets_by_hand():
    found = Perplexity((1.0,) * 511 + (2.0,) * 512 + (3.0,) * 100, 100, None)
    assert found.buckets() == pytest.approx({"1-511": math.e, "512-1023": math.exp(2), "1024-1123": math.exp(3)})
    assert found.of_tail == pytest.approx(math.exp(3))
    assert Perplexity((1.0, 2.0), 1, None).buckets() == pytest.approx({"1-2": math.exp(1.5)})


def test_perplexity_refuses_texts_that_are_too_short(engine):
    with pytest.raises(UsageError, match="10 tokens of text with a tail of 10"):
        perplexity(engine, TOKENS[:10], FULL, tail=10)
    with pytest.raises(UsageError, match="exceed the model's 512 positions"):
        perplexity(engine, TOKENS * 2, FULL)


def test_full_attention_agrees_with_itself(engine):
    base = baseline(engine, TOKENS[:120], 24, chunk=50)
    assert len(base.continuation) == 24
    assert base.continuation == engine.generate([TOKENS[:120]], max_new_tokens=24, chunk=50)[0].tokens
    assert base.logs.exp().sum(1) == pytest.approx(1, abs=1e-4)
    same = fidelity(engine, base, FULL)
    assert same.agreement == 1
    assert same.first is None
    assert same.kl == pytest.approx(0, abs=1e-5)
    wanted = -base.logs.gather(1, torch.tensor(base.continuation)[:, None]).mean()
    assert same.nll == pytest.approx(float(wanted), abs=1e-4)
    assert base.record.footprint.kv == same.record.footprint.kv == 1


def test_fidelity_falls_with_what_is_kept(engine):
    base = baseline(engine, TOKENS[:200], 32, chunk=64)
    found = [fidelity(engine, base, method("keynorm", {"skip": 0}), Budget.of(keep=keep)) for keep in (1.0, 0.6, 0.1)]
    assert found[0].agreement == 1
    assert found[0].kl < 1e-5 < found[1].kl < found[2].kl
    assert found[2].agreement < 1
    assert found[0].record.footprint.kv == 1 > found[1].record.footprint.kv > found[2].record.footprint.kv


def test_fidelity_against_plain_loops(engine):
    """The method's logits step by step, and the divergence written out."""
    base = baseline(engine, TOKENS[:100], 12, chunk=64)
    chosen, budget = method("tova"), Budget.of(keep=0.3)
    found = fidelity(engine, base, chosen, budget)
    same, kl, prompt = [], 0.0, list(base.prompt)
    plan = engine.plan(chosen, budget, 100, 64, 12)
    runner = engine.runner([plan], 12)
    sequence = runner.open(prompt, chosen, plan, Sampling(), 0)
    logits = runner.prefill(sequence)
    for i, token in enumerate(base.continuation):
        logs = logits.float().log_softmax(0)
        same.append(int(logs.argmax()) == token)
        kl += float((base.logs[i].exp() * (base.logs[i] - logs)).sum())
        (row,) = forced.follow(runner, sequence, [token])
        logits = row[0]
    assert found.agreement == sum(same) / 12
    assert found.kl == pytest.approx(kl / 12, abs=1e-5)
    assert found.first == (None if all(same) else same.index(False))


def test_a_baseline_ends_at_the_end_token():
    model = make()
    plain = Engine(model, page_size=4)
    base = baseline(plain, TOKENS[:60], 20)
    plain.close()
    end = base.continuation[5]
    model.generation_config.eos_token_id = end
    shorter = baseline(Engine(model, page_size=4), TOKENS[:60], 20)
    assert shorter.continuation == base.continuation[: base.continuation.index(end) + 1]
