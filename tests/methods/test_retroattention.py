"""RetroAttention (arXiv 2508.09001) against loops written from its definition."""

from math import exp
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

import families
import readers
import tiny
from kvfoot.attention.state import State, merge
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method
from kvfoot.methods.read.retroattention import Logged, RetroAttention

PROMPT, PAGE = 90, 4


class Loops:
    """Queries, entries and pages one by one, in float64; everything but the attention is transformers'.

    weight, mass: sum of exp(logit) and of exp(logit) x value of each (layer, query head, token); visited: the pages of
    each (layer, KV head, token). new: pairs that a correction added.
    """

    def __init__(self, model: Any, window: int, budget: int, skip: int):
        self.model, self.window, self.count, self.skip = model, window, max(3, budget // PAGE), skip
        self.keys: dict[tuple[int, int, int], list[float]] = {}
        self.values: dict[tuple[int, int, int], Tensor] = {}
        self.weight: dict[tuple[int, int, int], float] = {}
        self.mass: dict[tuple[int, int, int], Tensor] = {}
        self.visited: dict[tuple[int, int, int], set[int]] = {}
        self.positions: list[int] = []
        self.prompt = True
        self.new = 0
        self.tokens: list[int] = []

    def run(self, tokens: list[int], prompt: int) -> list[Tensor]:
        """Logits after the prompt and after each later token but the last."""
        AttentionInterface.register("loops", self.attention)
        AttentionMaskInterface.register("loops", lambda *args, **kwargs: None)
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("loops")
        found, self.tokens = [], tokens
        try:
            for t in range(prompt - 1, len(tokens)):
                self.prompt = t < prompt
                first = 0 if self.prompt else max(prompt, t - self.window + 1)
                self.positions = list(range(first, t + 1))
                with torch.no_grad():
                    out = self.model(
                        torch.tensor([tokens[first : t + 1]]),
                        position_ids=torch.tensor([self.positions]),
                        use_cache=False,
                    )
                found.append(out.logits[0, -1].double())
        finally:
            self.model.set_attn_implementation(before)
        return found

    def attention(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **more: Any) -> Any:
        layer, group = module.layer_idx, q.shape[1] // k.shape[1]
        for g in range(k.shape[1]):
            for i, p in enumerate(self.positions):
                self.keys[layer, g, p] = k[0, g, i].tolist()
                self.values[layer, g, p] = v[0, g, i].double()
        out = torch.empty(q.shape[2], q.shape[1], q.shape[3], dtype=torch.float64)
        for g in range(k.shape[1]):
            heads = range(g * group, (g + 1) * group)
            own = {h: [x.tolist() for x in q[0, h]] for h in heads}
            now = self.positions[-1]
            pages = self.choose(layer, g, [own[h][-1] for h in heads], now)
            for i, p in enumerate(self.positions):
                seen = self.visited.setdefault((layer, g, p), set())
                if self.prompt:
                    read = set(range(p // PAGE + 1))
                else:
                    read = pages - seen if layer >= self.skip or p == now else set()
                entries = [e for page in sorted(read) for e in range(page * PAGE, (page + 1) * PAGE) if e <= p]
                self.new += 0 if p == now or self.prompt else len(entries)
                for h in heads:
                    for e in entries:
                        w = exp(sum(a * b for a, b in zip(own[h][i], self.keys[layer, g, e], strict=True)) * scaling)
                        self.weight[layer, h, p] = self.weight.get((layer, h, p), 0.0) + w
                        self.mass[layer, h, p] = self.mass.get((layer, h, p), 0.0) + w * self.values[layer, g, e]
                    out[i, h] = self.mass[layer, h, p] / self.weight[layer, h, p]
                seen |= read
        return out.to(q.dtype)[None], None

    def choose(self, layer: int, g: int, queries: list[list[float]], now: int) -> set[int]:
        last = now // PAGE
        if layer < self.skip or self.prompt or self.count >= last + 1:
            return set(range(last + 1))
        bounds = []
        for page in range(last):
            keys = [self.keys[layer, g, e] for e in range(page * PAGE, (page + 1) * PAGE)]
            low, high = ([f(x) for x in zip(*keys, strict=True)] for f in (min, max))
            each = [sum(max(a * b, a * c) for a, b, c in zip(q, low, high, strict=True)) for q in queries]
            bounds.append((max(each), page))
        return {page for _, page in sorted(bounds)[-(self.count - 1) :]} | {last}


def compare(model: Any, options: dict[str, Any], budget: int, prompt: int = 40, new: int = 14) -> tuple[Any, Loops]:
    chosen = {"page": PAGE, "skip": 0} | options
    found, _ = readers.run("retroattention", chosen, budget=budget, prompt=prompt, new=new, chunk=None, model=model)
    loops = Loops(model, chosen.get("window", 2), budget, chosen["skip"])
    logits = loops.run(found.tokens[:-1], prompt)
    ours = [s.logits.double() for s in found.passes]
    assert len(ours) == len(logits) == new
    assert max((a - b).abs().max().item() for a, b in zip(ours, logits, strict=True)) < 2e-4
    return found, loops


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("skip", [0, 1])
def test_every_step_is_that_of_the_loops(window: int, skip: int) -> None:
    """Three layers: corrected tokens are written anew in the upper ones, and their pages' bounds with them."""
    model = tiny.make("llama", layers=3)
    found, loops = compare(model, {"window": window, "skip": skip}, budget=12)
    assert (loops.new > 0) == (window > 1)
    p = found.sequence.trace.passes[-1]
    assert (found.sequence.rows.lens == 53).all()
    assert sum(int(x.loaded.sum()) for x in found.sequence.trace.passes[1:]) == loops.new + first_reads(loops, skip)
    assert p.scan is not None


def first_reads(loops: Loops, skip: int) -> int:
    """Pairs that the newest tokens read: all in layers below `skip`, else count - 1 pages and what the last one has."""
    total = 0
    for t in range(40, 53):
        part = (loops.count - 1) * PAGE + t % PAGE + 1
        total += 2 * (skip * (t + 1) + (3 - skip) * part)
    return total


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "olmo2", "smollm3"])
def test_other_families(kind: str) -> None:
    compare(families.build(kind), {"window": 3}, budget=12, new=8)


def test_the_union_of_all_pages_is_dense_attention() -> None:
    """One layer: a token whose window has read every page has the attention that it would have had at once."""
    model = tiny.make("llama", layers=1)
    found, loops = compare(model, {"window": 12}, budget=20, prompt=24, new=13)
    past, whole = found.sequence.past[0, (0, 1)], 0
    with torch.inference_mode():
        keys, values = found.runner.cache.history(found.sequence.rows, 0, (0, 1))
    for i, p in enumerate(range(35 - past.out.shape[2] + 1, 36)):
        for g in range(2):
            if loops.visited[0, g, p] >= set(range(p // PAGE + 1)):
                whole += 1
                for h in range(3):
                    dense = loops_dense(loops, g, 3 * g + h, p)
                    assert (past.out[g, h, i].double() - dense).abs().max() < 1e-5
    assert whole >= 4
    assert keys.shape == values.shape == (2, 36, 8)


def loops_dense(loops: Loops, g: int, h: int, p: int) -> Tensor:
    """From the query as the model makes it, over entries 0 .. p."""
    attention = loops.model.model.layers[0].self_attn
    x = loops.model.model.layers[0].input_layernorm(loops.model.model.embed_tokens(torch.tensor([[loops.tokens[p]]])))
    q = attention.q_proj(x)[0, 0].view(-1, 8)[h].double()
    import oracle

    q = oracle.rotate(q[None, None], 5000.0, torch.tensor([p]))[0, 0]
    logits = torch.stack([q @ torch.tensor(loops.keys[0, g, e]).double() for e in range(p + 1)]) / 8**0.5
    return torch.stack([w * loops.values[0, g, e] for e, w in enumerate(logits.softmax(0))]).sum(0)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_budget_of_all_pages_is_dense_and_nothing_is_new(layers: int) -> None:
    model = tiny.make("llama", layers=layers)
    full, _ = readers.run("full", {}, model=model)
    found, _ = readers.run("retroattention", {"page": PAGE, "skip": 0, "window": 4}, budget=140, model=model)
    assert found.generated == full.generated
    assert max((a.logits - b.logits).abs().max() for a, b in zip(full.passes, found.passes, strict=True)) < 1e-5
    for p in found.sequence.trace.passes[-29:]:
        assert p.loaded.tolist() == (p.before + 1).tolist()


def test_parts_join_in_any_order() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 8), torch.randn(12, 8), torch.randn(12, 8)

    def part(entries: list[int]) -> State:
        s = q @ k[entries].T
        return State(s.softmax(-1) @ v[entries], s.logsumexp(-1))

    a, b, c = part([0, 5]), part([1, 2, 3, 4]), part([6, 7, 8, 9, 10, 11])
    whole = part(list(range(12)))
    for x, y, z in ((a, b, c), (c, a, b), (b, c, a)):
        joined = merge(merge(x, y), z)
        torch.testing.assert_close(joined.out, whole.out)
        torch.testing.assert_close(joined.lse, whole.lse)


def test_what_is_unseen_stops_at_the_token_itself() -> None:
    """Pages of 4; step 5 reads pages 0 and 2 as entry 10. Its predecessors are entries 9 and 8, of steps 4 and 3."""
    method = RetroAttention(page=4, skip=0, window=3)
    log = torch.tensor([[2, 4, 4], [4, 3, 3]])
    none = torch.zeros(2, 3, 8)
    slots = torch.tensor([[0, 1, 2, 3, 8, 9, 10]]).expand(2, 7)

    class Query:
        n, step, past = 11, 5, 2

    found = method.unseen(Logged(none, none, log), Query(), slots)  # type: ignore[arg-type]
    assert found[0].tolist() == [[True] * 4 + [False] * 3, [True] * 4 + [False] * 3]
    assert found[1].tolist() == [[False] * 7, [False] * 4 + [True, True, False]]


def test_batches_forks_and_sessions_go_on_by_themselves() -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4)
    found, _ = readers.run("retroattention", {"page": PAGE, "skip": 0, "window": 3}, budget=16, new=6)
    from kvfoot.engine.clock import Clock
    from kvfoot.engine.sampler import Sampling

    runner = found.runner
    twin = runner.fork(found.sequence, Sampling(), 0)
    past, kept = found.sequence.past[1, (0, 1)], list(found.sequence.recent)
    logits = runner.feed(twin, tiny.tokens(5, 8), None)
    runner.decode([twin], [logits], 8, Sampling(), Clock())
    runner.cache.check()
    assert found.sequence.past[1, (0, 1)] is past
    assert found.sequence.recent == kept == found.tokens[-3:-1]
    assert twin.recent == twin.tokens[-3:-1]
    assert twin.begun == 95 + 5
    assert engine.geometry.layers == 2


def test_over_what_an_evictor_kept() -> None:
    options = {"page": PAGE, "skip": 0, "retroattention.window": 3, "snapkv.window": 3, "size": 12}
    found, _ = readers.run("retroattention+snapkv", options, keep=0.5, chunk=20)
    alone, _ = readers.run("quest+snapkv", {"page": PAGE, "quest.skip": 0, "window": 3, "size": 12}, keep=0.5, chunk=20)
    assert np.array_equal(found.sequence.rows.lens, alone.sequence.rows.lens)
    assert any(not torch.equal(a.logits, b.logits) for a, b in zip(found.passes, alone.passes, strict=True))
    whole, _ = readers.run("retroattention+snapkv", options | {"size": 200}, keep=0.5, chunk=20)
    snap, _ = readers.run("snapkv", {"window": 3}, keep=0.5, chunk=20)
    assert whole.generated == snap.generated


def test_rectified_tokens_are_not_corrected_again() -> None:
    full, _ = readers.run("full", {})
    found, _ = readers.run("retroattention", {"page": PAGE, "skip": 0, "window": 3, "rectify": 1}, budget=16)
    assert found.generated == full.generated
    some, _ = readers.run("retroattention", {"page": PAGE, "skip": 0, "window": 3, "rectify": 6}, budget=16)
    assert some.kept()[0][0] == list(range(PROMPT + 29))


def test_published_defaults() -> None:
    engine = tiny.Strict(tiny.make("llama", positions=20_000))
    from kvfoot.core.budget import Budget

    method = find_method("retroattention")
    assert (method.window, method.page, method.skip) == (2, 16, 2)  # type: ignore[attr-defined]
    assert engine.plan(method, Budget(), 10_000, None, 1).reads == 1500


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="retroattention: window=0: the newest token and those that are corrected"):
        find_method("retroattention", {"window": 0})
    with pytest.raises(UsageError, match="verify takes drafts back, but not what they corrected"):
        find_method("retroattention", {"verify": 3})
    assert find_method("retroattention", {"verify": 3, "window": 1}).verify == 3  # type: ignore[attr-defined]
    windowed = tiny.Strict(
        tiny.make("qwen3", layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=1, head_dim=16)
    )
    with pytest.raises(UsageError, match="corrects tokens, which layers with a window of their own cannot do"):
        windowed.generate([tiny.tokens(20)], method="retroattention", max_new_tokens=2)
    engine = tiny.Strict(tiny.llama())
    options = {"roles": "01/11", "heads.sink": 2, "heads.window": 6}
    with pytest.raises(UsageError, match="retroattention corrects tokens, which heads's rows cannot"):
        engine.generate([tiny.tokens(60)], method="retroattention+heads", options=options, max_new_tokens=2)
