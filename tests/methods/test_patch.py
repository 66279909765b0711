"""Patched chunked eviction (arXiv 2506.17121, section 4): the prompt's end follows every chunk as its observers."""

from typing import Any

import pytest
import torch

import oracle
import tiny
from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method
from selections import Row

PROMPT, CHUNK, WINDOW, NEW = 75, 16, 3, 5


def run(name: str, **more: Any) -> tiny.Run:
    engine = tiny.Strict(tiny.llama(), page_size=4)
    options = {"window": WINDOW, "kernel": 3, "patch": True}
    return tiny.run(engine, tiny.tokens(PROMPT), name, options, chunk=CHUNK, new=NEW, **more)


def votes(row: Row, patch: list[int], pool: str) -> dict[int, float]:
    """Window scores of the patch's queries over contested and patch keys; only the contested ones are pooled."""
    smooth = []
    for h in range(row.heads):
        total = dict.fromkeys(row.contested, 0.0)
        for query in patch:
            for key, p in row.attention(h, query, row.contested + patch).items():
                if key in total:
                    total[key] += p
        flat = [0.0, *total.values(), 0.0]
        near = [flat[i : i + 3] for i in range(len(total))]
        smooth.append([sum(x) / 3 if pool == "avg" else max(x) for x in near])
    return {k: sum(s[i] for s in smooth) / len(smooth) for i, k in enumerate(row.contested)}


def patched_scores(model: Any, state: Any, passes: list[Any], tokens: list[int]) -> torch.Tensor:
    """Attention logits [layers, heads, T, T] of one pass with its patch right behind it."""
    sequence = tokens[: state.stop] + tokens[PROMPT - WINDOW : PROMPT]
    T = len(sequence)
    earlier = passes[: passes.index(state)]
    mask = oracle.visibility(passes[: len(earlier) + 1], 2, 2, T)
    stored = earlier[-1].kept if earlier else [[[], []], [[], []]]
    for layer in range(2):
        for head in range(2):
            for query in range(state.stop, T):
                mask[layer, head, query, stored[layer][head]] = True
                mask[layer, head, query, state.start : query + 1] = True
    return oracle.forward(model, sequence, mask)[1]


@pytest.mark.parametrize("mode", [{"keep": 0.4}, {"budget": 30}])
@pytest.mark.parametrize(("name", "pool"), [("snapkv", "avg"), ("pyramidkv", "avg"), ("adakv", "max")])
def test_the_prompts_end_chooses_in_every_chunk(name: str, pool: str, mode: dict[str, Any]) -> None:
    """Law 11 for every chunk before the last, whose patch sits at the positions behind it (trap 25)."""
    found = run(name, evict="chunk", **mode)
    parts = [p for p in found.passes if p.stop < PROMPT]
    assert len(parts) >= 3
    stored: list[list[list[int]]] = [[[], []], [[], []]]
    decided = 0
    for state in parts:
        scores = patched_scores(found.engine.model, state, found.passes, found.tokens)
        new, patch = list(range(state.start, state.stop)), list(range(state.stop, state.stop + WINDOW))
        scope = state.limit.scope
        for layer in range(2):
            rows = []
            for head in range(2):
                own = scores[layer, head * 3 : head * 3 + 3]
                limit = int(state.limit.counts[layer, head])
                rows.append(Row(layer, head, own, own, own[0], stored[layer][head], new, scope, limit))
            ranked = [votes(row, patch, pool) for row in rows]
            for head, (row, priority) in enumerate(zip(rows, ranked, strict=True)):
                kept = set(state.kept[layer][head])
                survivors = kept - set(row.stored) if scope == "new" else kept
                count = len(survivors) if name == "adakv" else min(row.limit, len(row.contested))
                best = sorted(row.contested, key=lambda k: -priority[k])[:count]
                if survivors != set(best):
                    lost = max(priority[k] for k in row.contested if k not in survivors)
                    assert lost - min(priority[k] for k in survivors) <= 1e-6
                decided += len(row.contested) > count
            total = sum(len(state.kept[layer][h]) - (len(stored[layer][h]) if scope == "new" else 0) for h in range(2))
            assert total == sum(min(row.limit, len(row.contested)) for row in rows)
        stored = state.kept
    assert decided


def test_a_patch_is_seen_by_nobody_and_charged_to_the_footprint() -> None:
    """Law 2: the logits are those of the kept entries alone. Decision D6: u(u + 1)/2 + u(b + n) more pairs a pass."""
    found = run("snapkv", keep=0.4, evict="chunk")
    length = found.passes[-1].stop
    mask = oracle.visibility(found.passes, 2, 2, length)
    logits, _ = oracle.forward(found.engine.model, found.tokens[:length], mask)
    assert max((s.logits.double() - logits[s.stop - 1]).abs().max().item() for s in found.passes) < 1e-4
    trace = found.sequence.trace
    plain = extra = peak = 0
    for p in trace.passes:
        b = int(p.before.sum())
        plain += 4 * p.n * (p.n + 1) // 2 + p.n * b
        extra += 4 * p.uncommitted * (p.uncommitted + 1) // 2 + p.uncommitted * (b + 4 * p.n)
        peak = max(peak, b + 4 * (p.n + p.uncommitted))
    assert [p.uncommitted for p in trace.passes[:5]] == [WINDOW] * 4 + [0]
    assert trace.kv() == plain + extra
    assert trace.peak() == peak
    shares_kept = [round(0.4 * (p.stop - p.start)) for p in found.sequence.plan.passes]
    assert found.sequence.rows.lens.tolist() == [[sum(shares_kept) + NEW - 1] * 2] * 2


def test_a_chunk_keeps_no_window_of_its_own_but_the_last_one_does() -> None:
    """specs/prulong.md 2.2: the always-kept slots are spent on the patch."""
    found = run("snapkv", keep=0.4, evict="chunk")
    ends = [set(range(p.stop - WINDOW, p.stop)) for p in found.passes[:5]]
    held = [[set(row) for layer in p.kept for row in layer] for p in found.passes[:5]]
    assert all(ends[4] <= row for row in held[4])
    assert not all(ends[i] <= row for i in range(4) for row in held[i])


def test_a_patch_changes_what_is_kept() -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4)
    bare = tiny.run(
        engine, tiny.tokens(PROMPT), "snapkv", {"window": WINDOW, "kernel": 3}, chunk=CHUNK, keep=0.4, evict="chunk"
    )
    assert run("snapkv", keep=0.4, evict="chunk").passes[3].kept != bare.passes[3].kept


def test_patch_with_post_is_refused() -> None:
    engine = tiny.Strict(tiny.llama())
    with pytest.raises(UsageError, match="patch=true shows the prompt's end to every chunk: it needs evict=chunk"):
        engine.plan(find_method("snapkv", {"patch": "true"}), Budget.of(0.5, None, "post"), PROMPT, CHUNK, 1)


def test_one_pass_has_no_chunk_to_patch() -> None:
    engine = tiny.Strict(tiny.llama())
    options = {"window": WINDOW, "patch": True}
    plan = engine.plan(find_method("snapkv", options), Budget.of(0.5, None, "chunk"), PROMPT, None, 1)
    assert [p.patch for p in plan.passes] == [None]
