"""What the papers say of the readers beside RefreshKV."""

from typing import Any

import pytest
import torch

import readers
import tiny
from kvfoot.attention.naive_bounds import upper
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method

PROMPT = 90


def test_quests_bound_is_one() -> None:
    torch.manual_seed(0)
    keys, q = torch.randn(3, 20, 8), torch.randn(3, 4, 8)
    pages = keys.unflatten(1, (5, 4))
    bound = upper(q, pages.amin(2), pages.amax(2))
    exact = torch.einsum("rhd,rpsd->rhps", q, pages)
    assert (bound[..., None] >= exact - 1e-5).all()
    ones = keys[:, :, None]
    torch.testing.assert_close(upper(q, ones.amin(2), ones.amax(2)), q @ keys.mT)


@pytest.mark.parametrize("page", [1, 4, 16])
def test_quest_reads_the_pages_of_the_greatest_bounds(page: int) -> None:
    """Against loops over keys of the oracle; with pages of one entry it is the exact top-k."""
    run, reads = readers.run("quest", {"page": page, "skip": 0}, budget=48)
    keys: list[torch.Tensor] = []
    import oracle

    T = run.passes[-1].stop
    oracle.forward(run.engine.model, run.tokens[:T], readers.mask(run, reads), keys)
    scores = readers.check(run, reads)
    count = max(3, 48 // page)
    for (layer, head, query), slots in reads.items():
        n = query + 1
        pages = [list(range(a, min(a + page, n))) for a in range(0, n, page)]
        assert len(slots) == (count - 1) * page + len(pages[-1])
        chosen = {s // page for s in slots}
        assert sorted(slots) == [s for p in sorted(chosen) for s in pages[p]]
        assert len(pages) - 1 in chosen
        if page == 1:
            own = scores[layer, head * 3 : head * 3 + 3, query, : n - 1].amax(0)
            least = own[sorted(chosen - {n - 1})].min()
            assert (own > least + 1e-6).sum() <= count - 2


def test_quest_skips_two_layers_as_published() -> None:
    run, reads = readers.run("quest", {"page": 4}, model=tiny.make("llama", layers=3), budget=24)
    assert all(len(reads[layer, 0, PROMPT]) == PROMPT + 1 for layer in (0, 1))
    assert len(reads[2, 0, PROMPT]) == 5 * 4 + 3
    assert run.sequence.trace.passes[-29].scan.tolist() == [[0, 0], [0, 0], [46, 46]], "23 pages: two keys' worth each"


def test_tokenselect_gives_a_layer_one_set_that_all_heads_voted_for() -> None:
    options: dict[str, Any] = {"sink": 2, "window": 5, "similarity": 1.1}
    run, reads = readers.run("tokenselect", options, budget=24)
    scores = readers.check(run, reads)
    for layer in range(2):
        for query in range(PROMPT, PROMPT + 29):
            slots = reads[layer, 0, query]
            assert slots == reads[layer, 1, query] == sorted(slots)
            assert slots[:2] == [0, 1]
            assert slots[-5:] == list(range(query - 4, query + 1))
            votes = scores[layer, :, query, 2 : query - 4].softmax(-1).sum(0)
            chosen = [s - 2 for s in slots[2:-5]]
            assert (votes > votes[chosen].min() + 1e-6).sum() < len(chosen) == 17


def test_tokenselect_reuses_a_choice_while_queries_are_alike() -> None:
    once, reads = readers.run("tokenselect", {"sink": 2, "window": 5, "similarity": -1}, budget=24)
    assert once.sequence.trace.strides() == [float("inf")] * 2
    middle = {tuple(slots[2:-5]) for (layer, _, _), slots in reads.items() if layer == 0}
    assert len(middle) == 1
    some, _ = readers.run("tokenselect", {"sink": 2, "window": 5, "similarity": 0.5}, budget=24)
    assert all(1 < stride < 29 for stride in some.sequence.trace.strides())


def test_tokenselect_needs_something_to_vote_for() -> None:
    engine = tiny.Strict(tiny.llama())
    with pytest.raises(UsageError, match=r"24 entries leave nothing to vote for beside sink \+ window = 640"):
        engine.generate([tiny.tokens(60)], method="tokenselect", budget=24, max_new_tokens=2)


def test_tidaldecode_reuses_what_its_two_layers_chose() -> None:
    run, reads = readers.run(
        "tidaldecode", {"skip": 1, "again": 3}, model=tiny.make("llama", layers=5, seed=2), budget=24
    )
    scores = readers.check(run, reads)
    for query in range(PROMPT, PROMPT + 29):
        for head in range(2):
            sizes = [len(reads[layer, head, query]) for layer in range(5)]
            assert sizes == [query + 1, query + 1, 24, query + 1, 24]
            for layer, source in ((2, 1), (4, 3)):
                own = scores[source, head * 3 : head * 3 + 3, query, : query + 1].amax(0)
                chosen = reads[layer, head, query]
                assert query in chosen
                others = [s for s in chosen if s != query]
                assert (own[:query] > own[others].min() + 1e-6).sum() < 23


def test_options_out_of_range() -> None:
    for name, options, line in [
        ("quest", {"page": 0}, "page=0: at least 1"),
        ("tokenselect", {"similarity": 3}, "similarity=3.0 is a cosine"),
        ("tidaldecode", {"again": 2}, "again=2 has to be above layer skip=2"),
    ]:
        with pytest.raises(UsageError, match=line):
            find_method(name, options)
