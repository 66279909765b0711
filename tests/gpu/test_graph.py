"""CUDA graphs: a replayed step writes what a launched one writes, waits for nothing, and draws the same tokens."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

import tiny
from families import build
from kvfoot.core.budget import Budget
from kvfoot.engine.graphs import Batch
from kvfoot.engine.resident import Resident
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.models.fusion import Fuse
from lawtable import label
from replayed import ALL, NEW, Done, decode
from tape import Rerun

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
pytest.importorskip("triton")

LENGTHS = (61, 30, 47)
"""In a bucket of 4: one place is idle."""


SERVED = [case for case in ALL if case[1] != {"skip": 0} and not case[1].get("exact")]
"""Keys of one token have one norm in layer 0, rounding decides which of them goes; kernels have no masks of a band."""


@cache
def model(dtype: torch.dtype = torch.float32) -> Any:
    """Heads of 64, which the kernels serve; its attention is peaked."""
    made = tiny.make("llama", layers=3, kv_heads=2, group=3, head_dim=64, hidden=96)
    return copy.deepcopy(made).to("cuda", dtype)


def on_gpu(name: str, options: dict[str, Any], *, graph: bool, dtype: torch.dtype = torch.float32, **more: Any) -> Done:
    more = {"lengths": LENGTHS, "page_size": 16, "backend": "triton", "record": True} | more
    return decode(model(dtype), name, options, replayed=graph, **more)


def opened(
    name: str = "full", mode: dict[str, Any] | None = None, lengths: tuple[int, ...] = (61, 30), sampling: Any = None
) -> tuple[Runner, list[Sequence], Batch]:
    """Prompts that are read and have their first token, and what replays their steps."""
    engine = tiny.Strict(model(), backend="triton", graph=True)
    chosen, sampling = engine.method(name), sampling or Sampling()
    plans = [engine.plan(chosen, Budget.of(**(mode or {})), n, 20, 64) for n in lengths]
    runner = engine.runner(plans, 64)
    sequences = [
        runner.open(tiny.tokens(n, n), chosen, plan, sampling, i)
        for i, (n, plan) in enumerate(zip(lengths, plans, strict=True))
    ]
    for sequence in sequences:
        sequence.tokens.append(int(runner.prefill(sequence).argmax()))
    assert runner.graphs is not None
    batch = runner.graphs.open(sequences, 64, sampling)
    assert batch is not None
    return runner, sequences, batch


@contextmanager
def no_waiting() -> Iterator[None]:
    """torch raises where an operation would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize(("name", "options", "mode"), SERVED, ids=label)
def test_a_graph_writes_what_launches_write(name: str, options: dict[str, Any], mode: dict[str, Any]) -> None:
    """Every graphable method on the triton backend, fp32: tokens, survivors, footprint, strides."""
    found, launched = (on_gpu(name, options, graph=graph, **mode) for graph in (True, False))
    assert found.steps == NEW - 1
    assert found.tokens == launched.tokens
    assert found.kept == launched.kept
    for mine, theirs in zip(found.sequences, launched.sequences, strict=True):
        assert mine.trace.footprint() == theirs.trace.footprint()
        assert mine.trace.strides() == pytest.approx(theirs.trace.strides(), nan_ok=True)


@pytest.mark.parametrize(("page", "group"), [(16, "max"), (16, "mean"), (32, "max")])
def test_a_graph_reads_the_caches_own_pages(page: int, group: str) -> None:
    """Quest's pages are the cache's, or made of them: tables of pages chosen on the device, in a bucket of 4."""
    options = {"page": page, "skip": 1, "group": group}
    more: dict[str, Any] = {"lengths": (150, 141, 191), "budget": 3 * page, "new": 40}
    found, launched = (on_gpu("quest", options, graph=graph, **more) for graph in (True, False))
    assert found.steps == 39
    assert found.tokens == launched.tokens
    for mine, theirs in zip(found.sequences, launched.sequences, strict=True):
        assert mine.trace.footprint() == theirs.trace.footprint()
        assert mine.trace.strides() == pytest.approx(theirs.trace.strides(), nan_ok=True)


@pytest.mark.parametrize("name", ["full", "h2o", "streaming"])
def test_a_graph_of_the_sdpa_backend(name: str) -> None:
    """The recording itself, without our kernels: attention in plain torch, padded to the tables."""
    mode = {} if name == "full" else {"keep": 0.5}
    found, launched = (on_gpu(name, {}, graph=graph, backend="sdpa", **mode) for graph in (True, False))
    assert found.steps == NEW - 1
    assert found.tokens == launched.tokens


def test_the_cpus_tokens() -> None:
    for name, options, mode in (("full", {}, {}), ("snapkv", {"window": 4}, {"keep": 0.5}), ("h2o", {}, {"keep": 0.5})):
        there = on_gpu(name, options, graph=True, **mode).tokens
        here = decode(
            copy.deepcopy(model()).cpu(), name, options, lengths=LENGTHS, replayed=False, page_size=16, **mode
        )
        assert there == here.tokens, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["full", "h2o", "refreshkv", "quest", "streamingllm"])
def test_in_half_precision_a_replay_is_its_own_step_run_plainly(name: str, dtype: torch.dtype) -> None:
    """The recorded function against the recording of it, token for token; launched steps may round otherwise."""
    mode = {"h2o": {"keep": 0.5}, "refreshkv": {"budget": 24}, "streamingllm": {"keep": 0.5}}.get(name, {})
    options = {"page": 4, "skip": 0} if name == "quest" else {}
    mode = {"budget": 24} if name == "quest" else mode
    plain, replayed = (on_gpu(name, options, graph=True, dtype=dtype, new=48, record=r, **mode) for r in (Rerun, True))
    assert plain.tokens == replayed.tokens
    assert plain.kept == replayed.kept


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("full", {}),
        ("streaming", {"keep": 0.5}),
        ("streamingllm", {"keep": 0.5}),
        ("h2o", {"keep": 0.5}),
        ("tova", {"keep": 0.5}),
        ("snapkv", {"budget": 80}),
        ("refreshkv", {}),
        ("quest", {}),
    ],
)
def test_no_step_waits_for_the_device(name: str, mode: dict[str, Any]) -> None:
    """Sampled steps, page crossings among them, under torch's sync debug mode: the token's event is the only wait."""
    mode = mode or {"refreshkv": {"budget": 24}, "quest": {"budget": 48}}.get(name, {})
    _, sequences, batch = opened(name, mode, (90, 85), Sampling(0.8, 0.9, top_k=50))
    kinds = set()
    for _ in range(6):  # every kind of step is recorded: that waits
        batch.advance()
        kinds.add(batch._kind(sequences))
    before = [s.rows.seen for s in sequences]
    with no_waiting():
        for _ in range(24):
            batch.advance()
    assert [s.rows.seen for s in sequences] == [n + 24 for n in before]
    batch.close()


def test_the_step_itself_waits_for_nothing_when_it_is_launched() -> None:
    """The recorded function run plainly, as the warming runs do, on words of an idle step."""
    methods: list[tuple[str, dict[str, Any]]] = [("full", {}), ("h2o", {"keep": 0.5}), ("refreshkv", {"budget": 24})]
    for name, mode in [*methods, ("quest", {"budget": 48}), ("streamingllm", {"keep": 0.5})]:
        runner, sequences, batch = opened(name, mode, (90, 61), Sampling(1.0, 0.9))
        batch.advance()
        resident = batch.resident
        assert isinstance(resident, Resident)
        assert resident.ledger is not None
        resident.ledger.idle()
        with no_waiting():
            resident.run("quiet")
        torch.cuda.synchronize()
        batch.close()
        runner.cache.check()
        assert sequences


def test_sampling_does_not_depend_on_the_batch_or_on_graphs() -> None:
    sampling = Sampling(0.9, 0.95, seed=3, top_k=40)
    together = on_gpu("full", {}, graph=True, sampling=sampling)
    again = on_gpu("full", {}, graph=True, sampling=sampling)
    launched = on_gpu("full", {}, graph=False, sampling=sampling)
    alone = on_gpu("full", {}, graph=True, sampling=sampling, lengths=LENGTHS[:1])
    assert together.tokens == again.tokens == launched.tokens
    assert alone.tokens[0] == together.tokens[0]
    other = on_gpu("full", {}, graph=True, sampling=Sampling(0.9, 0.95, seed=4, top_k=40))
    assert other.tokens != together.tokens


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([1.5, -0.5, 0.75, 2.5, -2.0, 0.0, 1.0, 0.5], device="cuda")
    n, sampling = 20_000, Sampling(1.3, seed=1)
    key = torch.full((n,), sampling.generator(0).key, device="cuda")
    found = sampling.choose(logits.expand(n, -1), key, torch.arange(n, device="cuda"))
    expected = (logits / 1.3).softmax(0).double() * n
    statistic = float(((torch.bincount(found, minlength=8) - expected) ** 2 / expected).sum())
    assert statistic < 24.32
    here = sampling.choose(logits.cpu().expand(n, -1), key.cpu(), torch.arange(n))
    assert (found.cpu() == here).float().mean() > 0.999


def test_a_recording_is_good_for_another_batch() -> None:
    """Two batches one after the other on one pool: the second replays the first one's graph."""
    runner, first, batch = opened(lengths=(61, 30))
    for _ in range(5):
        batch.advance()
    batch.close()
    assert runner.graphs is not None
    resident = runner.graphs.kept[0][1]
    recorded = dict(resident.graphs)
    for s in first:
        runner.cache.release(s.rows)
    method, plan = first[0].method, first[0].plan
    again = [runner.open(tiny.tokens(61, n), method, plan, Sampling(), i) for i, n in enumerate((5, 6))]
    tokens = []
    for s in again:
        s.tokens.append(int(runner.prefill(s).argmax()))
    other = runner.graphs.open(again, 20, Sampling())
    assert other is not None
    for _ in range(8):
        found = other.advance()
        assert found is not None
        tokens.append([found[0], found[1]])
        for i, s in enumerate(again):
            s.tokens.append(found[i])
    other.close()
    assert runner.graphs.kept[-1][1] is resident
    assert resident.graphs == recorded
    plain = tiny.Strict(model(), backend="triton", graph=False)
    for i, n in enumerate((5, 6)):
        expected = plain.generate([tiny.tokens(61, n)], chunk=20, max_new_tokens=9)[0].tokens
        assert again[i].tokens[61:] == expected


def test_many_runs_one_after_the_other() -> None:
    """Each has its own pool and graphs; what went before is gone."""
    engine = tiny.Strict(model(), backend="triton", graph=True)
    first = engine.generate([tiny.tokens(40)], max_new_tokens=8)[0]
    assert first.record.config["decode"] == "graph"
    for _ in range(3):
        assert engine.generate([tiny.tokens(40)], max_new_tokens=8)[0].tokens == first.tokens
        engine.generate([tiny.tokens(40), tiny.tokens(20)], method="h2o", keep=0.5, max_new_tokens=8)


def stepped(dtype: torch.dtype, fuse: int, batch: int) -> torch.Tensor:
    """Logits fp32 [steps, batch, vocabulary] of the recorded function run plainly, on tokens that are given."""
    found: list[torch.Tensor] = []
    own = copy.deepcopy(model(torch.bfloat16)).to(dtype)
    engine = tiny.Strict(own, backend="triton", graph=Rerun, fuse=fuse)
    chosen, sampling = engine.method("full"), Sampling()
    plans = [engine.plan(chosen, Budget(), 40 + i, 20, 16) for i in range(batch)]
    runner = engine.runner(plans, 16)
    sequences = [runner.open(tiny.tokens(40 + i, i), chosen, p, sampling, i) for i, p in enumerate(plans)]
    for i, s in enumerate(sequences):
        runner.prefill(s)
        s.tokens.append(7 + i)
    assert runner.graphs is not None
    resident = runner.graphs.suiting(sequences, 16, sampling)
    resident.attach(sequences)
    resident.step()
    resident.tokens()
    own.lm_head.register_forward_hook(lambda *call: found.append(call[2][0].float().clone()))
    for n in range(6):
        resident.buffers.feed([11 + n + i for i in range(batch)])
        resident.step()
        resident.tokens()  # the host's words may not change before the step has ended
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("level", "batch"), [(1, 1), (1, 4), (2, 1), (3, 1)])
def test_fused_kernels_are_as_near_as_the_models_own_operations(dtype: torch.dtype, level: int, batch: int) -> None:
    """Logits against the same weights in fp32: at most twice the error of the step that is not fused."""
    exact = stepped(torch.float32, 0, batch)
    assert (stepped(torch.float32, level, batch) - exact).abs().max() < 1e-3 * exact.abs().max()
    fused, plain = ((stepped(dtype, fuse, batch) - exact).square().mean().sqrt() for fuse in (level, 0))
    assert fused <= 2 * plain


FUSED: list[tuple[str, dict[str, Any]]] = [
    ("full", {}),
    ("h2o", {"keep": 0.5}),
    ("refreshkv", {"budget": 24}),
    ("streamingllm", {"keep": 0.5}),
]


@pytest.mark.parametrize(("name", "mode"), FUSED)
def test_a_graph_with_fused_kernels_writes_what_one_without_writes(name: str, mode: dict[str, Any]) -> None:
    """fp32: tokens and survivors. Fusion is the default; products are of single tokens."""
    assert tiny.Strict(model(), backend="triton").fuse is not None
    fused, plain = (on_gpu(name, {}, graph=True, fuse=fuse, **mode) for fuse in (None, 0))
    assert fused.tokens == plain.tokens
    assert fused.kept == plain.kept
    one, alone = (on_gpu(name, {}, graph=True, fuse=fuse, lengths=LENGTHS[:1], **mode) for fuse in (3, 0))
    assert one.tokens == alone.tokens
    assert one.kept == alone.kept


@pytest.mark.parametrize("level", ["0", "1", "2", "3"])
def test_no_level_of_fusion_waits_for_the_device(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded function run plainly on an idle step, after its kernels have been compiled."""
    monkeypatch.setenv("KVFOOT_FUSE", level)
    runner, _, batch = opened(lengths=(61,))
    batch.advance()
    resident = batch.resident
    assert resident is not None
    assert (resident.fusion is None) == (level == "0")
    assert resident.ledger is not None
    resident.ledger.idle()
    with no_waiting():
        resident.run("quiet")
    torch.cuda.synchronize()
    batch.close()
    runner.cache.check()


@pytest.mark.parametrize("kind", ["qwen3", "olmo2", "phi3", "smollm3", "gemma3_text"])
def test_families_with_fused_kernels(kind: str) -> None:
    """Norms of heads, of whole projections, one projection for all, layers without RoPE: kernels of the layer alone,
    attention in plain torch, which takes heads of any size.
    """
    from kvfoot.attention.triton import layer

    own = build(kind).to("cuda")
    more: dict[str, Any] = {"lengths": LENGTHS, "page_size": 16, "record": True}
    fused, plain = (decode(own, "full", {}, fuse=fuse, **more) for fuse in (Fuse(layer), 0))
    assert fused.steps == NEW - 1
    assert fused.tokens == plain.tokens


def test_the_model_is_left_as_it_was() -> None:
    before = {name: dict(vars(m)) for name, m in model().named_modules()}
    on_gpu("full", {}, graph=True)
    after = {name: dict(vars(m)) for name, m in model().named_modules()}
    assert [sorted(x) for x in before.values()] == [sorted(x) for x in after.values()]
    assert not any("forward" in x for x in after.values())


def test_graphs_are_the_default_of_the_triton_backend_alone() -> None:
    assert tiny.Strict(model(), backend="triton").graph is True
    assert tiny.Strict(model(), backend="sdpa").graph is False
