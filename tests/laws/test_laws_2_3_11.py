"""Laws 2, 3 and 11 on the same runs: what is evicted is masked, counted and chosen as the definitions say."""

from fractions import Fraction
from typing import Any

import pytest
from torch import Tensor

import oracle
import selections
import tiny
from kvfoot.core.hooks import Needs
from kvfoot.core.registry import method as find_method
from kvfoot.core.registry import methods
from lawtable import NEW, PROMPT, cases, check_fits, label


@pytest.mark.parametrize("name", methods())
def test_every_registered_method_runs_under_the_laws(name: str) -> None:
    check_fits(name)


def half_even(x: Fraction) -> int:
    """Nearest integer, ties to even, by its definition."""
    low = x.numerator // x.denominator
    rest = x - low
    return low + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1))


def counts(
    name: str, options: dict[str, Any], mode: dict[str, Any], stops: list[int], prompt: int, layers: int
) -> list[list[int]]:
    """Entries that a row of each layer holds after each pass, by decision D7."""
    chosen = find_method(name, options)
    held, result, begin = [0] * layers, [], 0

    def cut(most: int, size: int) -> list[int]:
        return [
            min(x, share) for x, share in zip(held, selections.shares(name, most, size, layers, options), strict=True)
        ]

    for stop in stops:
        n = stop - begin
        begin = stop
        before, held = held, [x + n for x in held]
        cuts = stop >= prompt or mode.get("evict") == "chunk"
        if "budget" in mode:
            held = cut(mode["budget"], prompt) if cuts else held
        elif "keep" in mode:
            ratio = Fraction(str(mode["keep"]))
            if chosen.total:
                held = cut(half_even(ratio * prompt), prompt) if cuts else held
            elif stop <= prompt and mode["evict"] == "chunk" and chosen.growing:
                held = cut(max(half_even(ratio * stop), chosen.protected), stop)
            elif stop <= prompt and mode["evict"] == "chunk":
                most = selections.shares(name, half_even(ratio * n), n, layers, options)
                held = [x + min(share, n) for x, share in zip(before, most, strict=True)]
            elif stop == prompt:
                held = cut(half_even(ratio * prompt), prompt)
        result.append(held)
    return result


def check_run(name: str, options: dict[str, Any], mode: dict[str, Any], run: tiny.Run) -> None:
    model, geometry = run.engine.model, run.engine.geometry
    T = run.passes[-1].stop
    mask = oracle.visibility(run.passes, geometry.layers, geometry.kv_heads, T)
    if run.sequence.plan.band is not None:
        mask = oracle.banded(mask, run.sequence.plan.band)
    keys: list[Tensor] = []
    ranked = run.passes if Needs.PRE_ROPE in find_method(name, options).needs else None
    plain: list[tuple[Tensor, Tensor, Tensor]] = []
    logits, scores = oracle.forward(model, run.tokens[:T], mask, keys, ranked, plain)
    # Law 2.
    for state in run.passes:
        gap = (state.logits.double() - logits[state.stop - 1]).abs().max().item()
        assert gap <= 1e-4, f"{name}: after position {state.stop - 1} the logits differ by {gap:.2g} from masking"
    # Law 3.
    expected = counts(name, options, mode, [s.stop for s in run.passes], run.sequence.prompt, geometry.layers)
    protected = find_method(name, options)
    sink, window = getattr(protected, "sink", 0), getattr(protected, "window", 0)
    for state, held in zip(run.passes, expected, strict=True):
        if name in selections.ROWS:
            rows = selections.ROWS[name](state.stop, geometry.layers, geometry.kv_heads, options)
            assert [list(map(len, layer_rows)) for layer_rows in state.kept] == rows
            continue
        for layer_rows, count in zip(state.kept, held, strict=True):
            assert sum(map(len, layer_rows)) == count * len(layer_rows)
            assert run.sequence.plan.ragged or all(len(row) == count for row in layer_rows)
    for state in run.passes:
        for row in (row for layer_rows in state.kept for row in layer_rows):
            assert set(range(min(sink, state.stop))) <= set(row), "a sink is gone"
            assert set(range(max(0, state.stop - window), state.stop)) <= set(row), "the window is gone"
    # Law 11.
    if not methods()[name].budgeted and name not in selections.PRIORITIES:
        return
    G, group = geometry.kv_heads, geometry.group
    for layer in range(geometry.layers):
        stored: list[list[int]] = [[] for _ in range(G)]
        mass: list[dict[int, list[float]]] = [{} for _ in range(G)]
        memo: list[dict[int, float]] = [{} for _ in range(G)]
        for state in run.passes:
            new = list(range(state.start, state.stop))
            scope = "all" if state.limit is None else state.limit.scope
            rows = []
            for head in range(G):
                own = scores[layer, head * group : (head + 1) * group]
                limit = len(stored[head]) + len(new) if state.limit is None else int(state.limit.counts[layer, head])
                rows.append(
                    selections.Row(
                        layer,
                        head,
                        own,
                        scores[layer],
                        keys[layer][head],
                        stored[head],
                        new,
                        scope,
                        limit,
                        mass[head],
                        plain[layer],
                        max(0, run.sequence.prompt - state.stop),
                        memo[head],
                    )
                )
                if name in selections.OBSERVE:
                    selections.OBSERVE[name](rows[head], options)
            kept = state.kept[layer]
            if state.limit is not None and state.limit.ragged:
                taken = [len(kept[h]) - (len(stored[h]) if scope == "new" else 0) for h in range(G)]
                for row, limit in zip(rows, selections.divide(name, rows, taken, options), strict=True):
                    row.limit = limit
            for row, survivors in zip(rows, kept, strict=True):
                selections.check(name, options, row, survivors)
            stored = kept
            mass = [{k: v for k, v in m.items() if k in set(row)} for m, row in zip(mass, kept, strict=True)]


@pytest.mark.parametrize("chunk", [7, 64, None])
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize(("name", "options", "mode"), cases(), ids=label)
def test_llama(name: str, options: dict[str, Any], mode: dict[str, Any], page_size: int, chunk: int | None) -> None:
    engine = tiny.Strict(tiny.llama(), page_size=page_size)
    run = tiny.run(engine, tiny.tokens(PROMPT), name, options, chunk=chunk, new=NEW, **mode)
    check_run(name, options, mode, run)


@pytest.mark.parametrize("chunk", [7, 64, None])
@pytest.mark.parametrize(("name", "options", "mode"), cases(), ids=label)
def test_qwen2(name: str, options: dict[str, Any], mode: dict[str, Any], chunk: int | None) -> None:
    engine = tiny.Strict(tiny.qwen2(), page_size=16, backend="naive")
    run = tiny.run(engine, tiny.tokens(PROMPT, 1), name, options, chunk=chunk, new=NEW, **mode)
    check_run(name, options, mode, run)


@pytest.mark.parametrize(("name", "options", "mode"), cases(), ids=label)
def test_tokens_fed_after_the_prompt(name: str, options: dict[str, Any], mode: dict[str, Any]) -> None:
    """A question after the document: passes of several tokens over rows that may lie out of order."""
    engine = tiny.Strict(tiny.llama(), page_size=4)
    chosen = find_method(name, options)
    from kvfoot.core.budget import Budget

    plan = engine.plan(chosen, Budget.of(**mode), PROMPT, 16, 40)
    runner = engine.runner([plan], 40)
    first = tiny.run(engine, tiny.tokens(PROMPT), name, options, plan=plan, runner=runner, new=4)
    prompt = first.sequence.prompt
    log: dict[int, list[tiny.Snapshot]] = {}
    with tiny.recorded(log, runner):
        runner.feed(first.sequence, tiny.tokens(11, 3), 5)
    # `feed` puts the tokens behind the last generated one, which has not been read.
    passes = first.passes + log[id(first.sequence)]
    read = first.tokens[: first.passes[-1].stop] + tiny.tokens(11, 3)
    again = tiny.Run(engine, runner, first.sequence, passes)
    again.sequence.tokens, again.sequence.prompt = read, prompt
    check_run(name, options, mode, again)
