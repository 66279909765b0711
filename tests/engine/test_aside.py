"""What is chosen beside a step: until it is waited for nobody needs it, or changes what it is chosen by."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiny
from kvfoot.engine import listed
from kvfoot.engine.aside import Aside
from lawtable import label
from replayed import READERS, decode, same


class Late(Aside):
    """As late as a stream may be: when the step waits for it."""

    begun = 0

    def run(self, work: Callable[[], None]) -> None:
        self.settle()
        self._held = work
        Late.begun += 1

    def settle(self) -> None:
        if self._held is not None:
            self._held()
            self._held = None


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *READERS,
    ("refreshkv", {"every": 3, "schedule": "fixed"}, {"keep": 0.4}),
    ("refreshkv", {"every": 2, "similarity": 0.6, "query": "kv_head", "group": "mean"}, {"keep": 0.4}),
]


@pytest.mark.parametrize(("name", "options", "mode"), CASES, ids=label)
def test_a_choice_may_come_as_late_as_the_next_layer(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], mode: dict[str, Any]
) -> None:
    """Replayed steps are the launched ones, though what is chosen is chosen behind the products in between."""
    monkeypatch.setattr(listed, "Aside", Late)
    Late.begun = 0
    found = same(tiny.llama(), name, options, lengths=(61, 30, 47, 30), **mode)
    assert found.steps > 0
    aside = options.get("mode") != "score_only" and name.split("+", maxsplit=1)[0] not in ("tokenselect", "quest")
    assert (Late.begun > 0) == aside


@pytest.mark.parametrize("options", [{"every": 3, "schedule": "fixed"}, {"every": 2, "similarity": 0.6}], ids=str)
def test_what_is_chosen_late_is_given_back(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    states = []
    for kind in (Aside, Late):
        monkeypatch.setattr(listed, "Aside", kind)
        states.append([s.reading for s in decode(tiny.llama(), "refreshkv", options, budget=24, new=23).sequences])
    for mine, theirs in zip(*states, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(state.slots, theirs[place].slots) for place, state in mine.items())
        assert all(torch.equal(state.since, theirs[place].since) for place, state in mine.items())


def test_one_piece_of_work_at_a_time_where_there_are_no_streams() -> None:
    done: list[int] = []
    aside = Aside(torch.device("cpu"))
    aside.run(lambda: done.append(1))
    aside.run(lambda: done.append(2))
    assert done == [1, 2]
    aside.settle()
