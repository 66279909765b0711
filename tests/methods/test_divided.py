"""AdaKV's division over the scores of any method that evicts: `adakv+keynorm`."""

from fractions import Fraction
from typing import Any

import pytest

import oracle
import selections
import tiny
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method

SCORERS: list[tuple[str, dict[str, Any]]] = [
    ("h2o", {}),
    ("keynorm", {"skip": 0}),
    ("pyramidkv", {"window": 3, "kernel": 3, "beta": 3}),
    ("random", {"window": 3, "seed": 5}),
    ("snapkv", {"window": 3, "kernel": 3}),
    ("tova", {}),
]
MODES: list[dict[str, Any]] = [{"keep": 0.5}, {"keep": 0.5, "evict": "chunk"}, {"budget": 24, "evict": "chunk"}]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "options"), SCORERS)
def test_a_layer_keeps_its_sum_and_evicted_entries_are_masked(
    name: str, options: dict[str, Any], mode: dict[str, Any]
) -> None:
    """Laws 2 and 3 for the division; where heads score alike (tova) it changes nothing."""
    engine = tiny.Strict(tiny.llama(), page_size=4)
    even = tiny.run(engine, tiny.tokens(75), name, options, chunk=16, new=8, **mode)
    ragged = tiny.run(engine, tiny.tokens(75), f"adakv+{name}", options, chunk=16, new=8, **mode)
    assert ragged.sequence.rows.lens.sum(1).tolist() == even.sequence.rows.lens.sum(1).tolist()
    T = ragged.passes[-1].stop
    logits, _ = oracle.forward(engine.model, ragged.tokens[:T], oracle.visibility(ragged.passes, 2, 2, T))
    assert max((s.logits.double() - logits[s.stop - 1]).abs().max().item() for s in ragged.passes) < 1e-4
    differ = ragged.sequence.rows.lens[:, 0] != ragged.sequence.rows.lens[:, 1]
    assert differ.any() or name in ("tova", "h2o"), "nothing was divided"
    assert not differ.any() or name != "tova"
    owned = ragged.runner.cache.pool.owned
    assert owned == (-(-ragged.sequence.rows.lens // 4)).sum(), "the memory is that of the ragged rows"


@pytest.mark.parametrize(("name", "options"), SCORERS)
def test_the_first_cut_is_divided_as_loops_divide_it(name: str, options: dict[str, Any]) -> None:
    """Law 11: one ranking over a layer's rows, alpha of the mean for everybody."""
    engine = tiny.Strict(tiny.qwen2(), page_size=4, backend="naive")
    run = tiny.run(engine, tiny.tokens(75, 1), f"adakv+{name}", options | {"alpha": "0.3"}, keep=0.5, new=2)
    state = run.passes[0]
    keys: list[Any] = []
    _, scores = oracle.forward(engine.model, run.tokens[:75], None, keys)
    for layer in range(3):
        rows = []
        for head in range(3):
            own, limit = scores[layer, head * 2 : head * 2 + 2], int(state.limit.counts[layer, head])
            new = list(range(75))
            rows.append(selections.Row(layer, head, own, scores[layer], keys[layer][head], [], new, "all", limit))
            if name in selections.OBSERVE:
                selections.OBSERVE[name](rows[head], options)
        kept = state.kept[layer]
        counts = selections.divide(name, rows, [len(row) for row in kept], options | {"alpha": 0.3})
        for row, count, survivors in zip(rows, counts, kept, strict=True):
            row.limit = count
            selections.check(name, options, row, survivors)


def test_over_snapkv_it_is_adakv() -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4)
    options = {"window": 3, "kernel": 3, "pool": "avg", "alpha": 0.4}
    runs = [tiny.run(engine, tiny.tokens(75), n, options, keep=0.4, new=4) for n in ("adakv", "adakv+snapkv")]
    assert runs[0].kept() == runs[1].kept()


def test_options_and_refusals() -> None:
    found = find_method("adakv+keynorm", {"alpha": "0.5", "skip": "0", "keynorm.sink": 2})
    assert found.options() == {"alpha": 0.5, "keynorm.skip": 0, "keynorm.window": 0, "keynorm.sink": 2}
    assert find_method(found.name, found.options()) == found
    assert Fraction(str(found.alpha)) == Fraction(1, 2)  # type: ignore[attr-defined]
    for name, options, line in [
        ("adakv+heads", {"roles": "10/01"}, "a budget is divided over a method that evicts by scores, such as keynorm"),
        ("adakv+refreshkv", {}, "divided over a method that evicts by scores"),
        ("adakv+adakv", {}, "divided over a method that evicts by scores"),
        ("adakv+keynorm", {"alpha": 2}, "alpha=2.0 is the share that every head gets"),
        ("adakv+keynorm", {"snapkv.window": 2}, "has no part 'snapkv'"),
        ("adakv+keynorm", {"kernel": 2}, "keynorm has no option 'kernel'"),
    ]:
        with pytest.raises(UsageError, match=line):
            find_method(name, options)
