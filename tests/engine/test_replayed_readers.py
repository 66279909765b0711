"""Readers in replayed steps: what they hold afterwards, sequences of several shapes, readers that know of one only."""

import gc
import weakref
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import tiny
from kvfoot.core.budget import Budget
from kvfoot.core.reading import Query, Read, Reader
from kvfoot.core.registry import method as find_method
from kvfoot.engine import states
from kvfoot.engine.clock import Clock
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from launches import of_a_step
from replayed import decode, same
from tape import Tape

SHAPES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("refreshkv", {"every": 3, "schedule": "fixed"}, {"budget": 24}),
    ("refreshkv", {"every": 2, "similarity": 0.6}, {"keep": 0.4}),
    ("refreshkv", {"every": 2, "similarity": 0.6, "mode": "score_only", "query": "kv_head"}, {"keep": 0.4}),
    ("refreshkv+adakv", {"size": 12, "every": 3, "schedule": "fixed", "window": 4}, {"keep": 0.7}),
    ("tokenselect", {"sink": 2, "window": 5, "similarity": 0.5}, {"keep": 0.5}),
    ("quest", {"page": 4, "skip": 0}, {"keep": 0.4}),
    ("quest", {"page": 3, "skip": 1}, {"budget": 12}),
    ("quest+adakv", {"page": 4, "quest.skip": 0, "size": 12, "window": 4}, {"keep": 0.7}),
    ("tidaldecode", {"skip": 0, "again": 1}, {"keep": 0.4}),
]


@pytest.mark.parametrize(("name", "options", "mode"), SHAPES)
def test_the_states_that_are_given_back(name: str, options: dict[str, Any], mode: dict[str, Any]) -> None:
    """A fraction gives unequal prompts lists of their own lengths: groups of one sequence, and of two."""
    found, launched = (
        decode(tiny.llama(), name, options, lengths=(61, 30, 47, 30), replayed=on, new=23, **mode)
        for on in (True, False)
    )
    assert found.tokens == launched.tokens
    assert found.steps == 22
    if name == "tidaldecode":
        return  # its states end with the step
    for mine, theirs in zip(found.sequences, launched.sequences, strict=True):
        assert mine.trace.strides() == pytest.approx(theirs.trace.strides(), nan_ok=True)
        assert mine.reading.keys() == theirs.reading.keys()
        for place, state in mine.reading.items():
            for a, b in zip(states.tensors(state), states.tensors(theirs.reading[place]), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_layer_that_refreshes_nothing_is_a_layer_of_full_attention(batch: int) -> None:
    """Operation by operation, whatever the batch; a few more for the whole step, whatever the number of layers."""
    full, rest = of_a_step("llama", 0, "full", batch)
    found, more = of_a_step("llama", 0, "refreshkv", batch, budget=12)
    assert found == full
    assert more - rest <= 25


@pytest.mark.parametrize("batch", [1, 4])
def test_a_layer_that_reads_pages_has_six_operations_more(batch: int) -> None:
    """Two of them kernels over bounds; nothing that grows is copied."""
    full, _ = of_a_step("llama", 0, "full", batch, page_size=4)
    found, _ = of_a_step("llama", 0, find_method("quest", {"page": 4, "skip": 0}), batch, page_size=4, budget=12)
    assert found - full == dict.fromkeys(("widen", "reach", "topk", "floor_divide", "cat", "gather"), 1)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_layer_that_refreshes_is_its_attention_and_a_choice(batch: int) -> None:
    """Known beforehand: nothing but the kernels of the choice, and for scores alone those that read what is chosen."""
    full, _ = of_a_step("llama", 0, "full", batch)
    for mode, reading in (("full", 0), ("score_only", 2)):
        options = {"schedule": "fixed", "every": 3, "mode": mode}
        found, _ = of_a_step("llama", 0, find_method("refreshkv", options), batch, "check", budget=12)
        assert found == full + Counter({"choice": 4, "refill": 1, "attention": reading})


def test_a_ring_turns_over_more_than_once() -> None:
    """K = 5: after 30 steps nothing of the selection is left, and the newest are there in order."""
    options = {"similarity": -2, "max_gap": None}
    found = same(tiny.llama(), "refreshkv", options, budget=5, lengths=(30, 20), new=31)
    for s in found.sequences:
        n = int(s.rows.lens.max())
        for state in s.reading.values():
            assert state.slots.tolist() == [list(range(n - 5, n))] * 2


def test_bounds_end_with_their_sequence_and_go_on_with_the_next_batch() -> None:
    """A sequence that is done leaves its state as it was; those of another batch take the same room."""
    options, mode = {"page": 4, "skip": 0}, {"budget": 12}
    free = decode(tiny.llama(), "quest", options, lengths=(61, 30), new=20, replayed=False, **mode)
    stop = frozenset({free.tokens[0][5]})
    found = same(tiny.llama(), "quest", options, lengths=(61, 30), new=20, stop=stop, **mode)
    assert len(found.tokens[0]) < len(found.tokens[1])
    for s in found.sequences:
        n = int(s.rows.lens.max())
        assert {state.low.shape[1] for state in s.reading.values()} == {-(-n // 4)}


def one_by_one(name: str, options: dict[str, Any], budget: int) -> tuple[Runner, Any]:
    """A runner, and what decodes a prompt of n tokens on it by five more."""
    engine, chosen = tiny.Strict(tiny.llama(), page_size=4, graph=Tape), find_method(name, options)
    plan = engine.plan(chosen, Budget.of(budget=budget), 90, 20, 5)
    runner = engine.runner([plan] * 2, 5)

    def run(n: int) -> Sequence:
        own = engine.plan(chosen, Budget.of(budget=budget), n, 20, 5)
        sequence = runner.open(tiny.tokens(n, n), chosen, own, Sampling(), 0)
        try:
            runner.decode([sequence], [runner.prefill(sequence)], 5, Sampling(), Clock())
        finally:
            runner.cache.release(sequence.rows)
        return sequence

    return runner, run


@pytest.mark.parametrize(
    ("name", "options", "room"),
    [
        ("quest", {"page": 4, "skip": 0}, "engine.standing.Standing._grown"),
        ("refreshkv", {"every": 2}, "attention.rings.Rings.empty"),
    ],
)
def test_memory_that_is_short_once_leaves_nothing_half_made(
    name: str, options: dict[str, Any], room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for states runs out while a batch is taken over; the next batch of its shape has all of it."""
    _, run = one_by_one(name, options, 12)

    def short(*given: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(f"kvfoot.{room}", short)
        with pytest.raises(torch.OutOfMemoryError):
            run(60)
    free = decode(tiny.llama(), name, options, lengths=(60,), new=5, replayed=False, budget=12)
    assert run(60).generated == free.tokens[0]


@pytest.mark.parametrize(
    ("name", "options"), [("quest", {"page": 4, "skip": 0}), ("refreshkv", {"every": 2}), ("tidaldecode", {"skip": 0})]
)
def test_a_recording_forgets_its_batch(name: str, options: dict[str, Any]) -> None:
    """It is kept for others; tokens, traces and states of those that it was made for are not."""
    runner, run = one_by_one(name, options, 12)
    gone = weakref.ref(run(60))
    gc.collect()
    assert runner.graphs is not None
    assert len(runner.graphs.kept) == 1
    assert gone() is None


def test_ranks_do_not_follow_the_text() -> None:
    """A full row of StreamingLLM is the same however much was read: one recording, angles for what a row holds."""
    runner, run = one_by_one("streamingllm", {"sink": 2}, 24)
    for n in (40, 90):
        free = decode(tiny.llama(), "streamingllm", {"sink": 2}, lengths=(n,), new=5, replayed=False, budget=24)
        assert run(n).generated == free.tokens[0]
    assert runner.graphs is not None
    assert [resident.ranks.most for _, resident in runner.graphs.kept if resident.ranks] == [28]


def test_quest_is_launched_until_there_is_a_page_to_leave_out() -> None:
    """Three pages of 8 are read at least: from entry 25 on, which the third step stores."""
    found = same(tiny.llama(), "quest", {"page": 8, "skip": 0}, budget=8, lengths=(22,), new=10)
    assert found.steps == 9 - 2


@dataclass(frozen=True)
class Turn:
    """slots: int64 [R, K]; turn: int64 [], steps of this sequence so far."""

    slots: Tensor
    turn: Tensor


@dataclass(frozen=True)
class Alone(Reader):
    """Knows of one sequence: a state without rows, a refresh that is one bool on the device."""

    name: ClassVar[str] = "alone"

    def start(self, query: Query) -> Turn:
        return self.refresh(Turn(query.newest, (query.newest[0, 0] + 1) % 2), query)[0]

    def read(self, state: Turn, query: Query) -> tuple[Turn, Read]:
        if query.n <= query.size + 1:
            return state, Read(None)
        slots = torch.cat([state.slots, query.newest], 1)
        sign = (query.key[0, 0] > query.value[0, 0]).long()
        return replace(state, turn=state.turn + 1), Read(slots, (state.turn + sign) % 3 == 0)

    def refresh(self, state: Turn, query: Query) -> tuple[Turn, Tensor]:
        scores, _ = query.earlier(query.scores())
        slots = scores.sum(1).topk(min(query.size, query.n - 1)).indices
        return replace(state, slots=slots), torch.cat([slots, query.newest], 1)

    def phase(self, step: int, n: int, size: int) -> str | None:
        return None if n <= size + 1 else "only"


def test_a_reader_that_knows_of_one_sequence() -> None:
    """Asked sequence by sequence, each with its own clock."""
    found = same(tiny.llama(), Alone(), budget=9, lengths=(61, 30, 47))
    fired = [tuple(bool(p.refreshed.all()) for p in s.trace.passes if p.refreshed is not None) for s in found.sequences]
    assert len(set(fired)) == 3
    assert all(0 < sum(own) < len(own) for own in fired)


@dataclass(frozen=True)
class Queue:
    slots: Tensor


@dataclass(frozen=True)
class Careless(Alone):
    """Says that it has a queue, and leaves it alone."""

    queue: ClassVar[str | None] = "slots"

    def start(self, query: Query) -> Queue:  # type: ignore[override]
        return Queue(query.newest)

    def read(self, state: Queue, query: Query) -> tuple[Queue, Read]:  # type: ignore[override]
        return state, Read(query.newest)


@dataclass(frozen=True)
class Curious(Careless):
    """Looks at its weights before it has asked for them."""

    def read(self, state: Queue, query: Query) -> tuple[Queue, Read]:  # type: ignore[override]
        slots, kept = query.push(state.slots)
        query.scores()
        return Queue(kept), Read(slots)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (Careless(), "alone: `read` pushes its queue, and no other"),
        (Curious(), "asks for logits and scores in `refresh`"),
    ],
)
def test_what_a_reader_may_not_do_in_a_replayed_step(method: Reader, line: str) -> None:
    with pytest.raises(TypeError, match=line):
        decode(tiny.llama(), method, lengths=(30,), budget=9)
