"""A reader over a method that evicts: whose options are whose, and which pairs are refused."""

import re
from typing import Any

import numpy as np
import pytest

import readers
import tiny
from kvfoot.core.compose import Over
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method


def over(name: str, **options: Any) -> Over:
    found = find_method(name, options)
    assert isinstance(found, Over)
    return found


def test_options_go_to_whoever_has_them() -> None:
    found = over(
        "refreshkv+snapkv", every="3", window="32", **{"snapkv.sink": "4", "refreshkv.kernel": 5, "size": "64"}
    )
    assert (found.name, found.category, found.budgeted) == ("refreshkv+snapkv", "read", True)
    assert (found.reader.every, found.reader.kernel, found.reader.sink) == (3, 5, 0)  # type: ignore[attr-defined]
    assert (found.evictor.window, found.evictor.sink, found.evictor.kernel) == (32, 4, 5)  # type: ignore[attr-defined]
    assert (found.size, found.verify, found.observers, found.protected) == (64, 0, 32, 36)
    assert find_method(found.name, found.options()) == found
    assert over("quest+snapkv", verify=3).verify == 3


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("refreshkv+snapkv", {"kernel": 3}, "both have kernel: write refreshkv.kernel=3 or snapkv.kernel=3"),
        ("refreshkv+snapkv", {"evry": 3}, "has no option 'evry' (did you mean every"),
        ("refreshkv+snapkv", {"h2o.recent": 1}, "has no part 'h2o': h2o.recent begins with refreshkv. or snapkv."),
        ("refreshkv+snapkv", {"every": 3, "refreshkv.every": 4}, "refreshkv.every is given twice"),
        ("refreshkv+snapkv", {"size": 0}, "size=0: give at least 1 entry per row"),
        ("refreshkv+snapkv", {"size": 0.5}, "size=0.5 is a count of entries; read_keep is a fraction"),
        ("refreshkv+snapkv", {"read_keep": 2}, "read_keep=2.0 is outside (0, 1]"),
        ("refreshkv+snapkv", {"read_keep": "x"}, "read_keep='x' is not a number"),
        ("refreshkv+snapkv", {"size": 9, "read_keep": 0.1}, "size and read_keep exclude each other"),
        ("refreshkv+snapk", {}, "unknown method 'snapk' (did you mean snapkv"),
        ("snapkv+refreshkv", {}, "a method that reads comes first, one that evicts second"),
        ("refreshkv+quest", {}, "a method that reads comes first, one that evicts second"),
        ("refreshkv+snapkv+h2o", {}, "has 3 parts"),
        ("tokenselect+snapkv", {}, "tokenselect reads in one row what it chose in another"),
        ("tidaldecode+snapkv", {}, "tidaldecode reads in one row what it chose in another"),
        ("refreshkv+streamingllm", {}, "streamingllm renumbers positions"),
    ],
)
def test_what_cannot_be_composed(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        find_method(name, options)


@pytest.mark.parametrize(
    ("name", "options", "size", "line"),
    [
        ("refreshkv+streaming", {}, {"keep": 0.5}, "streaming evicts while decoding, under which a reader's slots"),
        ("refreshkv+h2o", {}, {"keep": 0.5}, "h2o evicts while decoding"),
        ("refreshkv+snapkv", {"window": 3}, {"budget": 24}, "snapkv evicts while decoding, .*: give keep, not budget"),
        ("refreshkv+snapkv", {"window": 3}, {}, r"snapkv needs a size: give keep"),
        ("refreshkv+heads", {"roles": "00/00"}, {}, "heads evicts while decoding"),
        ("refreshkv+heads", {"roles": "01/11", "verify": 2}, {}, "verify takes tokens back, which heads's rows cannot"),
    ],
)
def test_what_evicts_at_decode_is_refused_by_name(
    name: str, options: dict[str, Any], size: dict[str, Any], line: str
) -> None:
    engine = tiny.Strict(tiny.llama())
    with pytest.raises(UsageError, match=line):
        engine.generate([tiny.tokens(60)], method=name, options=options, max_new_tokens=2, **size)


def test_how_much_is_read() -> None:
    """size is a count, read_keep a fraction of the prompt, and the default is the reader's."""
    engine = tiny.Strict(tiny.llama())
    from kvfoot.core.budget import Budget

    for options, reads in (({"size": 20}, 20), ({"read_keep": 0.25}, 50), ({}, 128)):
        method = over("refreshkv+snapkv", window=3, **options)
        plan = engine.plan(method, Budget.of(0.5), 200, None, 1)
        assert plan.reads == reads
        assert (plan.passes[-1].cut.counts == 100).all()  # type: ignore[union-attr]


def test_over_heads_that_are_all_full_it_is_the_reader_alone() -> None:
    options = {"every": 3, "similarity": 0.5}
    alone, _ = readers.run("refreshkv", options, budget=20)
    found, _ = readers.run("refreshkv+heads", options | {"roles": "11/11", "size": 20})
    assert found.generated == alone.generated
    assert found.sequence.trace.read() == alone.sequence.trace.read()


def test_both_footprints_shrink() -> None:
    found, _ = readers.run("refreshkv+snapkv", {"window": 3, "every": 5, "size": 12}, prompt=200, keep=0.25, chunk=None)
    alone, _ = readers.run("snapkv", {"window": 3}, prompt=200, keep=0.25, chunk=None)
    decoded = slice(-29, None)
    assert found.sequence.trace.kv() == alone.sequence.trace.kv()
    stored = sum(int(p.before.sum()) + 4 for p in found.sequence.trace.passes[decoded])
    read = sum(float(p.loaded.sum() + p.scan.sum() / 2) for p in found.sequence.trace.passes[decoded])
    assert np.isclose(stored, sum(4 * (50 + i) for i in range(1, 30)))
    assert read < 0.6 * stored


@pytest.mark.parametrize("gamma", [1, 4])
def test_checked_drafts_are_the_evictor_s_own_tokens(gamma: int) -> None:
    engine = tiny.Strict(tiny.llama(), page_size=4)
    prompts = [tiny.tokens(30 + i, 50 + i) for i in range(12)]
    more: dict[str, Any] = {"keep": 0.6, "max_new_tokens": 10}
    alone = engine.generate(prompts, method="snapkv", options={"window": 3}, **more)
    options = {"window": 3, "size": 6, "similarity": -2}
    found = engine.generate(prompts, method="refreshkv+snapkv", options=options | {"verify": gamma}, **more)
    assert [r.tokens for r in found] == [r.tokens for r in alone]
    bare = engine.generate(prompts, method="refreshkv+snapkv", options=options, **more)
    assert [r.tokens for r in bare] != [r.tokens for r in alone], "the drafts were right anyway"


def test_a_session_over_what_was_kept() -> None:
    """A fork of the kept rows is read by a reader that starts anew after the question."""
    engine = tiny.Strict(tiny.llama(), page_size=4)
    method = over("refreshkv+snapkv", window=3, size=10, every=2)
    first = tiny.run(engine, tiny.tokens(60), method, keep=0.5, later=tiny.tokens(9, 4), new=8)
    assert first.sequence.begun == 69
    assert first.sequence.reading[0, (0, 1)].slots.shape == (2, 10)
    assert len(first.kept()[0][0]) == 30 + 9 + 7
