"""A replayed decode step is the launched one: tokens, survivors, traces and pages; and nothing but buffers feeds it.

The recorder is tests/tape.py: a replay runs recorded operations alone, with the constants that they had while they were
recorded, on words of an idle step. What is replayed for real sequences therefore comes out of the buffers.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import tiny
from families import DECIDED, SHAPES, build
from kvfoot.attention import sdpa
from kvfoot.cache.kv import KVCache
from kvfoot.cache.memory import current
from kvfoot.core.budget import Budget
from kvfoot.core.errors import NotFinite, PoolExhausted, UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Keep, Method, Needs, Plan, Seen, declared
from kvfoot.core.reading import Reader
from kvfoot.core.registry import method as find_method
from kvfoot.core.registry import methods
from kvfoot.engine import states
from kvfoot.engine.clock import Clock
from kvfoot.engine.graph import bucket
from kvfoot.engine.graphable import why_eager, why_not_here
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.methods.evict.streaming import Streaming
from kvfoot.methods.evict.streamingllm import StreamingLLM
from kvfoot.methods.heads.heads import Heads
from lawtable import OPTIONS, label
from replayed import ALL, EAGER, NEW, decode, graphable, same
from tape import HostRead, NoHostReads, Rerun, Tape


@pytest.mark.parametrize(("name", "options", "mode"), ALL, ids=label)
def test_a_replayed_step_is_the_launched_one(name: str, options: dict[str, Any], mode: dict[str, Any]) -> None:
    """Every registered method that claims to be graphable, in a bucket of 4 with one idle place."""
    found = same(tiny.llama(), name, options, **mode)
    assert found.steps == NEW - 1
    assert sum(tape.replays for tape in found.tapes) == NEW - 1
    kinds = 2 if name.startswith("refreshkv") else 1
    assert len(found.tapes) == kinds


def test_who_is_stepped_without_a_graph() -> None:
    """The list above is what the registry says."""
    for name, cls in methods().items():
        mode = {"budget": 24} if cls.budgeted or issubclass(cls, Reader) else {}
        assert graphable(name, OPTIONS.get(name, [{}])[0], mode) == (name not in EAGER), name
    for options in ({"store": 8}, {"values": "host", "mode": "score_only"}, {"grow": 0.5}, {"prerope": True}):
        assert not graphable("refreshkv", options, {"budget": 24})
    for name in ("refreshkv", "quest"):
        assert not graphable(name, {"verify": 3}, {"budget": 24})
    assert not graphable("refreshkv+heads", {"roles": "10/01", "heads.sink": 2, "window": 6, "size": 20}, {})


@pytest.mark.parametrize("name", sorted(EAGER))
def test_the_others_are_stepped_as_ever(name: str) -> None:
    found = same(tiny.llama(), name, OPTIONS.get(name, [{}])[0], budget=24)
    assert found.steps == 0
    assert not found.tapes


def test_a_dynamic_refresh_is_decided_row_by_row_on_the_device() -> None:
    found = same(tiny.llama(), "refreshkv", {"every": 2, "similarity": 0.6, "max_gap": None}, budget=24, new=24)
    refreshed = [p.refreshed for s in found.sequences for p in s.trace.passes if p.refreshed is not None]
    checked = [r for step, r in enumerate(refreshed) if r.any() or step % 2]
    assert 0 < sum(int(r.sum()) for r in checked) < sum(r.size for r in checked)


def test_a_reader_that_reads_everything_is_launched_until_its_lists_are_full() -> None:
    found = same(tiny.llama(), "refreshkv", {"every": 3}, budget=50, lengths=(44,), new=20)
    assert found.steps == 19 - (50 - 44)


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "gpt_oss"])
def test_every_family(kind: str) -> None:
    """Oldest of windows, layers without RoPE, q and k norms: prompts shorter than, at and beyond a window."""
    model = build(kind)
    same(model, "full", lengths=(61, 5, 23, 24, 25))
    if kind in DECIDED:
        same(model, "h2o", keep=0.5)
        same(model, "refreshkv", {"every": 3, "similarity": 0.6}, budget=16)
        same(model, "quest", {"page": 3, "skip": 0}, budget=16)
        found = same(model, "streamingllm", {"sink": 2}, keep=0.5)
        assert found.steps == NEW - 1


@pytest.mark.parametrize("kind", ["default", "yarn", "linear"])
def test_positions_are_ranks(kind: str) -> None:
    """YaRN's amplitude counts once; texts longer than the model's positions, rows that grow until they are full."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 5000.0}
    if kind != "default":
        rope |= {"factor": 4.0, "original_max_position_embeddings": 64}
    model = tiny.make("llama", layers=2, rope_parameters=rope)
    for page_size in (3, 16):
        found = same(model, "streamingllm", {"sink": 2}, budget=36, lengths=(61, 30, 20), new=24, page_size=page_size)
        assert found.steps == 23
    with_positions = decode(model, "streaming", {"sink": 2}, budget=36, lengths=(61, 30, 20), new=24)
    assert with_positions.kept == found.kept
    assert with_positions.tokens != found.tokens


def test_experts_are_launched() -> None:
    assert "experts" in str(why_not_here(build("gpt_oss"), tiny.Strict(tiny.llama()).backend))


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("name", ["full", "h2o", "streaming", "streamingllm", "quest"])
def test_pages_of_any_size(name: str, page_size: int) -> None:
    options = {"page": 4, "skip": 0} if name == "quest" else {}
    found = same(tiny.llama(), name, options, page_size=page_size, **({} if name == "full" else {"budget": 24}))
    assert found.steps == NEW - 1


@pytest.mark.parametrize("budget", [36, 37, 40])
def test_rows_that_grow_until_they_are_full(budget: int) -> None:
    """The shorter prompts reach the budget in the middle, at and beside a page's end: spare pages come into use."""
    same(tiny.llama(), "h2o", budget=budget, lengths=(61, 30, 33, 20))
    same(tiny.llama(), "heads", {"roles": "10/01", "sink": 4, "window": budget - 4}, lengths=(30, 20))


def test_sequences_that_end_early_leave_their_places_idle() -> None:
    free = decode(tiny.llama(), "snapkv", {"window": 4}, keep=0.5, lengths=(61, 30, 47, 20))
    ends = frozenset({free.tokens[0][3], free.tokens[2][6]})
    found = same(tiny.llama(), "snapkv", {"window": 4}, keep=0.5, lengths=(61, 30, 47, 20), stop=ends)
    assert len({len(tokens) for tokens in found.tokens}) > 1


def test_sampling_is_the_same_inside_a_step() -> None:
    for sampling in (Sampling(0.8, seed=5), Sampling(1.2, 0.9, seed=6), Sampling(1.0, top_k=7, seed=7)):
        found = same(tiny.llama(), "full", sampling=sampling)
        alone = decode(tiny.llama(), "full", lengths=(61,), sampling=sampling)
        assert alone.tokens[0] == found.tokens[0], "the batch does not decide what is drawn"
        assert len(set(found.tokens[0])) > 5


# Which entry goes


def asked(cls: type[Method]) -> type[Method]:
    """The same method with a `priority` of its own, so that the engine cannot know what it does."""

    def priority(self: Method, seen: Seen) -> torch.Tensor:
        return cls.priority(self, seen)

    return type(cls.__name__, (cls,), {"priority": priority})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("streaming", {"sink": 2}),
        ("streaming", {"sink": 0}),
        ("h2o", {}),
        ("h2o", {"group": "max", "recent": 0.25}),
        ("tova", {}),
        ("heads", {"roles": "10/01", "sink": 2, "window": 9}),
        ("heads", {"roles": "streaming", "sink": 9, "window": 0}),
    ],
    ids=label,
)
def test_a_declared_ranking_is_what_asking_gives(name: str, options: dict[str, Any]) -> None:
    """The host's arithmetic, and mass that is added up without the method, against `observe` and `priority`."""
    mode = {} if name == "heads" else {"budget": 24}
    own = asked(methods()[name])(**options)
    assert declared(find_method(name, options)) is not None
    assert declared(own) is None
    fast = decode(tiny.llama(), name, options, lengths=(61, 20, 47), new=40, **mode)
    slow = decode(tiny.llama(), own, lengths=(61, 20, 47), new=40, **mode)
    assert fast.steps == slow.steps == 39
    assert fast.tokens == slow.tokens
    assert fast.kept == slow.kept


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("streaming", {"sink": 3}),
        ("streamingllm", {"sink": 3}),
        ("heads", {"roles": "10/01", "sink": 2, "window": 9}),
    ],
)
def test_rows_in_another_order_are_looked_at_once(name: str, options: dict[str, Any], shuffled: bool) -> None:
    """Given back and taken again: rings that have turned, growing rows behind them, and slots in any order."""
    runs = []
    for graph in (Tape, False):
        engine, chosen = tiny.Strict(tiny.llama(), page_size=4, graph=graph), find_method(name, options)
        plans = [engine.plan(chosen, Budget.of(budget=None if name == "heads" else 24), n, 20, 60) for n in (61, 19)]
        runner = engine.runner(plans, 60)
        some = [runner.open(tiny.tokens(n, n), chosen, p, Sampling(), 0) for n, p in zip((61, 19), plans, strict=True)]
        logits = [runner.prefill(s) for s in some]
        if shuffled:
            for s in some:
                shuffle(runner.cache, s)
        for until in (4, 9, 30):
            runner.decode(some, logits, until, Sampling(), Clock())
            logits = [runner.feed(s, [until], None) for s in some]  # launched: a ring turns by one
            for s in some:
                s.done = False
        runs.append(([s.generated for s in some], [tiny.kept(runner, s) for s in some]))
        assert (runner.graphs.steps if runner.graphs else 0) == (29 - 2 if graph else 0)
        runner.cache.check()
    assert runs[0] == runs[1]


@torch.inference_mode()
def shuffle(cache: KVCache, s: Sequence) -> None:
    """The entries of all rows of a sequence to other slots of theirs."""
    for layer, pages in enumerate(s.rows.pages):
        for head, ids in enumerate(pages):
            n, size = int(s.rows.lens[layer, head]), cache.pool.page_size
            order = torch.randperm(n, generator=torch.Generator().manual_seed(n + head))
            slots = torch.from_numpy(ids).repeat_interleave(size)[:n] * size + torch.arange(n) % size
            for plane in (cache.pool.k, cache.pool.v, *cache.pool.planes.values()):
                flat = plane.view(-1, plane.shape[2])
                flat[slots] = flat[slots[order]].clone()
        s.rows.ordered[layer] = False


# What feeds a step


@pytest.mark.parametrize(
    ("name", "options", "mode"),
    [
        ("h2o", {}, {"keep": 0.5}),
        ("streamingllm", {"sink": 2}, {"keep": 0.5}),
        ("quest", {"page": 4, "skip": 0}, {"budget": 12}),
    ],
)
def test_a_recording_is_good_for_another_batch(name: str, options: dict[str, Any], mode: dict[str, Any]) -> None:
    """Recorded for one batch, replayed for another of other lengths, prompts and random numbers, on the same pool."""
    engine, chosen = tiny.Strict(tiny.llama(), page_size=4, graph=Tape), find_method(name, options)
    plans = [engine.plan(chosen, Budget.of(**mode), n, 20, NEW) for n in (70, 50)]
    runner = engine.runner(plans, NEW)
    tapes = []
    for round_, lengths in enumerate([(70, 50), (33, 58), (12, 70)]):
        Tape.made.clear()
        sampling = Sampling(0.7, seed=round_)
        plans = [engine.plan(chosen, Budget.of(**mode), n, 20, NEW) for n in lengths]
        some = [
            runner.open(tiny.tokens(n, n), chosen, p, sampling, i)
            for i, (n, p) in enumerate(zip(lengths, plans, strict=True))
        ]
        runner.decode(some, [runner.prefill(s) for s in some], NEW, sampling, Clock())
        tapes.append(len(Tape.made))
        expected = decode(tiny.llama(), name, options, lengths=lengths, replayed=False, sampling=sampling, **mode)
        assert [s.generated for s in some] == expected.tokens
        for s in some:
            runner.cache.release(s.rows)
    assert tapes == [1, 0, 0]
    assert runner.cache.pool.owned == 0


def held(sequence: Sequence) -> list[Tensor]:
    """What a reader holds of it."""
    return [x for state in sequence.reading.values() for x in states.tensors(state)]


@torch.inference_mode()
def test_forks_are_written_to_alone() -> None:
    """A kept prompt is asked three times in graphs, its shared pages copied before a step may write to them."""
    methods: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("full", {}, {}),
        ("h2o", {}, {"keep": 0.5}),
        ("streaming", {}, {"budget": 24}),
        ("streamingllm", {}, {"budget": 24}),
        ("quest", {"page": 4, "skip": 0}, {"budget": 24}),
    ]
    for name, options, mode in methods:
        said = []
        for graph in (Tape, False):
            engine, chosen = tiny.Strict(tiny.llama(), page_size=4, graph=graph), find_method(name, options)
            plan = engine.plan(chosen, Budget.of(**mode), 61, 20, NEW)
            runner = engine.runner([plan] * 3, NEW)
            base = runner.open(tiny.tokens(61), chosen, plan, Sampling(), 0)
            logits = runner.prefill(base)
            before = [x.clone() for x in (*runner.cache.history(base.rows, 0, (0,)), *held(base))]
            forks = [runner.fork(base, Sampling(0.9, seed=i), i) for i in range(2)]
            for i, fork in enumerate(forks):
                runner.decode([fork], [logits], NEW, Sampling(0.9, seed=i), Clock())
            runner.cache.check()
            after = (*runner.cache.history(base.rows, 0, (0,)), *held(base))
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            said.append([f.generated for f in forks])
        assert said[0] == said[1]


def test_a_pool_that_is_full_is_refused_before_the_step_and_nothing_is_lost() -> None:
    engine, full = tiny.Strict(tiny.llama(), page_size=4, graph=Tape), find_method("full")
    plan = engine.plan(full, Budget(), 40, 20, NEW)
    runner = engine.runner([plan], NEW)
    sequence = runner.open(tiny.tokens(40), full, plan, Sampling(), 0)
    logits = runner.prefill(sequence)
    free = runner.cache.pool.free
    taken = runner.cache.pool.allocate(free - 1 - 2 * 4)
    with pytest.raises(PoolExhausted, match="--kv-memory"):
        runner.decode([sequence], [logits], NEW, Sampling(), Clock())
    assert len(sequence.generated) == 9, "two pages a row hold eight tokens beside the first"
    runner.cache.pool.release(taken)
    runner.cache.check()
    runner.cache.release(sequence.rows)
    assert runner.cache.pool.owned == 0


def test_nan_is_reported_with_its_layer() -> None:
    model = tiny.make("llama")
    engine, full = tiny.Strict(model, graph=Tape), find_method("full")
    plan = engine.plan(full, Budget(), 9, None, 4)
    runner = engine.runner([plan], 4)
    sequence = runner.open(tiny.tokens(9), full, plan, Sampling(), 0)
    logits = runner.prefill(sequence)
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = torch.nan
    with pytest.raises(NotFinite, match="first in attention of layer 1"):
        runner.decode([sequence], [logits], 4, Sampling(), Clock())
    runner.cache.check()


def test_the_refusing_mode_refuses() -> None:
    x = torch.tensor([1.0, 0.0])
    for ask in (x[0].item, lambda: bool(x[0] > 0), x.nonzero, lambda: x[x > 0], lambda: torch.tensor([3])):
        with NoHostReads(), pytest.raises(HostRead):
            ask()


def test_a_method_with_a_keep_of_its_own_is_launched() -> None:
    class Own(Streaming):
        name = "own"

        def keep(self, seen: Seen) -> Keep:
            return Keep.top(self.priority(seen), seen.keep)

    plan = tiny.Strict(tiny.llama()).plan(Own(), Budget.of(keep=0.5), 61, 20, NEW)
    assert "keep" in str(why_eager(Own(), plan))


def test_a_method_that_renumbers_and_weighs_is_launched() -> None:
    """Its ranks are by position, its weights would be too; slots are in another order."""
    own = asked(methods()["streamingllm"])(sink=2)
    plan = tiny.Strict(tiny.llama()).plan(own, Budget.of(keep=0.5), 61, 20, NEW)
    assert "renumbers positions" in str(why_eager(own, plan))
    found = same(tiny.llama(), own, keep=0.5)
    assert found.steps == 0
    assert found.tokens == decode(tiny.llama(), "streamingllm", {"sink": 2}, keep=0.5).tokens


@dataclass(frozen=True)
class Lenient(StreamingLLM):
    """Evicts from prompts of 40 tokens or more, and from no other."""

    name: ClassVar[str] = "lenient"

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        plan = super().prepare(geometry, prompt, chunk, budget)
        return plan if prompt >= 40 else Plan(tuple(replace(part, cut=None) for part in plan.passes))


@pytest.mark.parametrize(("lengths", "steps"), [((61, 20), 0), ((20, 61), 0), ((61, 50), NEW - 1), ((20, 30), NEW - 1)])
def test_sequences_that_evict_and_others_are_launched(lengths: tuple[int, ...], steps: int) -> None:
    assert same(tiny.llama(), Lenient(2), budget=24, lengths=lengths).steps == steps


def test_positions_that_are_not_stored_are_not_read() -> None:
    """The pool has the plane for a longer prompt; this one's ranks are its slots, whatever lies in the plane."""
    engine, chosen = tiny.Strict(tiny.llama(), page_size=4, graph=Tape), Lenient(2)
    plans = [engine.plan(chosen, Budget.of(budget=24), n, 20, NEW) for n in (61, 20)]
    runner = engine.runner(plans, NEW)
    runner.cache.pool.planes["position"].random_(0, 99)
    short = runner.open(tiny.tokens(20, 20), chosen, plans[1], Sampling(), 0)
    runner.decode([short], [runner.prefill(short)], NEW, Sampling(), Clock())
    assert runner.graphs is not None
    assert runner.graphs.steps == NEW - 1
    assert [short.generated] == decode(tiny.llama(), chosen, budget=24, lengths=(20,), replayed=False).tokens


def test_the_record_says_how_a_run_decoded() -> None:
    said = {}
    for name, graph in (("full", Tape), ("retroattention", Tape), ("full", False)):
        engine = tiny.Strict(tiny.llama(), graph=graph)
        said[name, bool(graph)] = engine.generate([tiny.tokens(20)], method=name, max_new_tokens=3)[0].record.config
    assert said["full", True]["decode"] == "graph"
    assert said["retroattention", True]["decode"].startswith("eager (its steps read tokens")
    assert said["full", False]["decode"] == "eager"


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(UsageError, match="this model is on cpu: leave it out"):
        tiny.Strict(tiny.llama(), graph=True)
    assert tiny.Strict(tiny.llama()).graph is False


def test_buckets() -> None:
    assert [bucket(n) for n in (1, 2, 3, 9, 24, 25, 256, 257)] == [1, 2, 4, 16, 24, 32, 256, 384]


class Guarded:
    """The sdpa backend; what was asked for while the pool's device was the current one, and while it was not."""

    name = "sdpa"

    def __init__(self) -> None:
        self.inside, self.asked = False, {True: set[str](), False: set[str]()}

    @contextmanager
    def current(self, device: torch.device) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False

    def __getattr__(self, name: str) -> Any:
        self.asked[self.inside].add(name)
        return getattr(sdpa, name)


@pytest.mark.parametrize(
    ("name", "mode", "operations"),
    [
        ("refreshkv", {"budget": 24}, {"attend", "piecewise", "planned", "paged", "emitted", "push", "refill"}),
        ("h2o", {"keep": 0.5}, {"attend", "piecewise", "planned", "paged", "tally", "replace", "column_scores"}),
        (
            "quest",
            {"budget": 24, "options": {"page": 4, "skip": 0}},
            {"attend", "piecewise", "planned", "paged", "reach", "widen"},
        ),
        ("retroattention", {"budget": 24, "options": {"page": 4, "skip": 0}}, {"attend", "piecewise", "reach"}),
    ],
)
def test_kernels_are_launched_on_the_models_own_device(
    name: str, mode: dict[str, Any], operations: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several GPUs: Triton launches on the current one, wherever its tensors lie."""
    backend: Any = Guarded()
    monkeypatch.setattr("kvfoot.engine.step.current", backend.current)
    monkeypatch.setattr("kvfoot.engine.resident.current", backend.current)
    engine = tiny.Strict(tiny.llama(), page_size=4, backend=backend, graph=Rerun)
    backend.asked[False].clear()  # what an engine asks of a backend about itself
    engine.generate([tiny.tokens(61)], method=name, chunk=20, max_new_tokens=9, **mode)
    assert not backend.asked[False]
    assert operations <= backend.asked[True]
    assert isinstance(current(torch.device("cuda:1")), torch.cuda.device)
    assert isinstance(current(torch.device("cpu")), nullcontext)


@dataclass(frozen=True)
class Weighed(Heads):
    """Streaming heads that lose what the newest query attends to least, beside heads that lose nothing."""

    name: ClassVar[str] = "weighed"
    needs: ClassVar[Needs] = Needs.WINDOW_SCORES

    @property
    def observers(self) -> int:
        return 1

    def priority(self, seen: Seen) -> Tensor:
        assert seen.scores is not None
        return seen.scores.mean(1).masked_fill(seen.positions < 2, torch.inf)


def test_whole_rows_beside_weighed_ones_have_room_for_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels write the weights of every row, past the end of those that are asked for."""
    widths: list[int] = []
    plain = sdpa.paged

    def paged(*given: Any, width: int = 0, **more: Any) -> Any:
        assert width == 0 or int(given[4].max()) <= width
        widths.append(width)
        return plain(*given, width=width, **more)

    monkeypatch.setattr(sdpa, "paged", paged)
    found = same(tiny.llama(), Weighed(roles="10/01", sink=2, window=6), record=Rerun)
    assert found.steps == NEW - 1
    assert max(widths) > 61
