"""A reader over a cache in few bits, or whose values lie on the host: what it reads, what it takes, what it costs."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch

import readers
import tiny
from kvfoot.cache.pool import Pool
from kvfoot.core.errors import PoolExhausted, UsageError
from kvfoot.core.reading import Reader
from kvfoot.core.registry import method as find_method
from kvfoot.core.registry import methods
from kvfoot.core.storage import Storage
from kvfoot.engine import reading
from kvfoot.methods.read.refreshkv import best

K, PROMPT = 20, 90
WAYS: list[dict[str, Any]] = [
    {"store": 8},
    {"store": 4, "mode": "score_only"},
    {"values": "host", "mode": "score_only"},
    {"store": 4, "values": "host", "mode": "score_only"},
]


@contextmanager
def looked_at(log: list[tuple[Any, ...]]) -> Any:
    """(layer, heads, position, slots, held, what the cache has in these slots as it stores it) of every attention."""
    attend = reading._attend
    with pytest.MonkeyPatch.context() as patch:

        def spy(cache: Any, backend: Any, query: Any, slots: Any, held: Any) -> Any:
            if held is not None:
                flat = cache.flat_slots(query.rows, query.layer, query.heads, slots).flatten()
                raw = [x.flatten(0, 1)[flat].clone() for x in (cache.pool.k, cache.pool.v)]
                log.append((query.layer, query.heads, query.position, slots.clone(), held, raw, cache.pool.format))
            return attend(cache, backend, query, slots, held)

        patch.setattr(reading, "_attend", spy)
        yield


@pytest.mark.parametrize("way", WAYS)
def test_the_partial_cache_is_a_copy_in_the_model_s_dtype(way: dict[str, Any]) -> None:
    """Spec 7.5, 6: the index list gathers it from the full cache bit for bit; new entries in it are exact."""
    log: list[tuple[Any, ...]] = []
    engine = tiny.Strict(tiny.llama(), page_size=4)
    with looked_at(log):
        found = tiny.run(engine, tiny.tokens(PROMPT, 3), "refreshkv", {"every": 4, "similarity": 0.3} | way, budget=K,
                         new=30, chunk=40)  # fmt: skip
    assert len(log) > 30
    exact = rough = 0
    for _, heads, position, slots, held, raw, form in log:
        assert held.k.dtype == torch.float32
        assert held.k.shape == held.v.shape == (len(heads), slots.shape[1], 8)
        for mine, stored in zip((held.k, held.v), raw, strict=True):
            near, codes = mine.flatten(0, 1), form.encode(mine.flatten(0, 1))
            same = (form.decode(stored) == near).all(1).view(slots.shape)
            written = (codes == stored).all(1).view(slots.shape)
            assert (same | written).all(), "a copy of something else"
            assert written[:, -1].all(), "the newest entry is the one that is stored"
            rough += int((~same).sum())
            exact += int(same.sum())
        assert (slots[:, -1] == position).all()
    assert exact
    assert (rough > 0) == ("store" in way), "new entries are kept as they were computed"
    p = found.sequence.trace.passes[-1]
    copies = 4 * K * 2 * 8 * 4
    assert p.side == copies + 4 * K * 8 + 2 * (8 * 4 + 8)


def test_slots_may_lie_in_any_order() -> None:
    """Spec 7.5, 6: attention over a permuted list is the same."""
    found, _ = readers.run("refreshkv", {"similarity": -2, "max_gap": None}, budget=K, new=4)
    cache, rows = found.runner.cache, found.sequence.rows
    state = found.sequence.reading[1, (0, 1)]
    torch.manual_seed(0)
    q = torch.randn(2, 3, 8)
    with torch.inference_mode():
        whole = None
        for seed in range(4):
            order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
            k, v = cache.take(rows, 1, (0, 1), state.slots[:, order])
            out = found.engine.backend.attend(q[:, :, None], k, v, 0.35, causal=False).out
            torch.testing.assert_close(out, out if whole is None else whole)
            whole = out


def test_values_on_the_host_change_no_token() -> None:
    """score_only with the values of all entries on the host, fetched per refresh: logits bit for bit."""
    engine = tiny.Strict(tiny.llama(), page_size=4)
    options = {"every": 3, "similarity": 0.4, "mode": "score_only"}
    for budget in (12, 60, 200):
        runs = []
        for place in ("device", "host"):
            more = {"values": place}
            runs.append(
                tiny.run(engine, tiny.tokens(50, 3), "refreshkv", options | more, budget=budget, new=40, chunk=20)
            )
        near, far = runs
        assert near.generated == far.generated
        assert all(torch.equal(a.logits, b.logits) for a, b in zip(near.passes, far.passes, strict=True))
        assert near.sequence.trace.strides() == far.sequence.trace.strides()
    prompts = [tiny.tokens(n, n) for n in (40, 75, 12)]
    more: dict[str, Any] = {"method": "refreshkv", "budget": 10, "chunk": 16, "max_new_tokens": 20}
    a, b = (engine.generate(prompts, options=options | {"values": place}, **more) for place in ("device", "host"))
    assert [r.tokens for r in a] == [r.tokens for r in b]
    near, far = a[0].record, b[0].record
    for name in ("held_bytes", "peak_bytes"):
        whole = getattr(near.memory, name)
        assert getattr(far.memory, name) == getattr(far.memory, f"host_{name}") == whole // 2
        assert getattr(near.memory, f"host_{name}") == 0
    assert near.footprint.host == 0
    assert far.footprint.host == pytest.approx(0.5)
    assert near.footprint.kv == far.footprint.kv == 1
    for one, other in zip(far.sequences, near.sequences, strict=True):
        copies = one.footprint.bytes - 0.5 - (other.footprint.bytes - 1)
        dense = sum(range(1, one.prompt + 20)) * 4
        assert copies * dense == pytest.approx(19 * 4 * 10), "the partial caches are on the device"
    assert far.footprint.read > near.footprint.read, "what is fetched is counted"


@pytest.mark.parametrize("bits", [8, 4])
def test_the_pool_is_that_small(bits: int) -> None:
    """Heads of 64 in fp32: 512 bytes an entry, 144 in 8 bits, 80 in 4; a pool too small for one holds the other."""
    model = tiny.make("llama", head_dim=64)
    engine = tiny.Strict(model, page_size=4)
    prompts = [tiny.tokens(n, n) for n in (300, 77)]
    more: dict[str, Any] = {"method": "refreshkv", "budget": 24, "max_new_tokens": 8}
    plain = engine.generate(prompts, **more)[0].record
    small = engine.generate(prompts, options={"store": bits}, **more)[0].record
    each = {8: 72, 4: 40}[bits] * 2
    pages = plain.memory.held_bytes // (4 * 512)
    assert small.memory.held_bytes == pages * 4 * each
    assert small.memory.dense_bytes == plain.memory.dense_bytes
    assert small.memory.side_bytes > 4 * 24 * 512 * 2, "two sequences' partial caches, beside the pool"
    for whole, few in zip(plain.sequences, small.sequences, strict=True):
        assert few.footprint.kv == whole.footprint.kv == 1
        assert few.footprint.bytes < whole.footprint.bytes * (each / 512 + 0.12)
        assert few.footprint.bytes > each / 512
    tight = tiny.Strict(model, page_size=4, kv_memory=small.memory.peak_bytes * 21 // 20)
    with pytest.raises(PoolExhausted):
        tight.generate(prompts, **more)
    assert tight.generate(prompts, options={"store": bits}, **more)[0].tokens


@pytest.mark.parametrize("schedule", ["dynamic", "fixed"])
def test_the_byte_footprint_is_the_sum_of_what_is_held(schedule: str) -> None:
    found, _ = readers.run("refreshkv", {"store": 4, "schedule": schedule, "every": 100, "max_gap": None}, budget=K)
    trace = found.sequence.trace
    width = 2 * (8 // 2 + 4)
    seen = [p.side for p in trace.passes if p.n == 1]
    # A layer's reference query, fp32 [1, 8], and its entry; nothing where nothing is compared.
    queries = 2 * (8 * 4 + 8) if schedule == "dynamic" else 0
    assert seen == [4 * K * (2 * 8 * 4 + 8) + queries] * 29
    stored = trace.kv() * width + sum(seen)
    assert trace.footprint().bytes == pytest.approx(stored / (trace.dense() * 64), rel=1e-12)


def test_few_bits_rank_like_all_of_them() -> None:
    """The entries that one query chooses from the same keys: overlap of the sets, and the output's error."""
    torch.manual_seed(0)
    q, keys = torch.randn(4, 3, 64) * 1.6, torch.randn(4, 2000, 64)
    keys[..., 5] *= 6  # a channel that is larger than the others, as keys have
    agree = {}
    for bits in (8, 4):
        pool = Pool(64, torch.float32, page_size=16, pages=1, storage=Storage(bits))
        sets = []
        for k in (keys, pool.format.decode(pool.format.encode(keys))):
            slots = best((q @ k.mT / 8).softmax(-1), 250)
            sets.append([set(row) for row in slots.tolist()])
        agree[bits] = sum(len(a & b) for a, b in zip(*sets, strict=True)) / 1000
    assert agree[8] > 0.98
    assert 0.8 < agree[4] < agree[8]


@pytest.mark.parametrize("name", [n for n, cls in methods().items() if issubclass(cls, Reader)])
def test_every_reader_takes_a_cache_in_few_bits(name: str) -> None:
    """Everything read: logits are near full attention's, nearer in 8 bits; every law's poison is on."""
    options = {"sink": 2, "window": 5} if name == "tokenselect" else {}
    model = tiny.make("llama", layers=3, head_dim=32)
    full, _ = readers.run("full", {}, model=model, chunk=None, new=10)
    gaps = []
    for bits in (8, 4):
        found, _ = readers.run(name, options | {"store": bits}, budget=200, model=model, chunk=None, new=10)
        assert found.runner.cache.pool.k.dtype == torch.uint8
        assert torch.equal(found.passes[0].logits, full.passes[0].logits), "one pass reads nothing from the cache"
        same = [a for a, b in zip(found.tokens[90:], full.tokens[90:], strict=True) if a == b]
        gaps.append(float((found.passes[1].logits - full.passes[1].logits).abs().max()) if same else 9.0)
    assert 0 < gaps[0] < gaps[1]
    assert gaps[0] < 0.2
    few, _ = readers.run(name, options | {"store": 8}, budget=24, model=model, chunk=20, new=10)
    assert few.kept()[0][0] == list(range(99))


@pytest.mark.parametrize("evictor", ["snapkv", "adakv", "heads"])
@pytest.mark.parametrize("way", WAYS[1:])
def test_over_what_an_evictor_keeps(way: dict[str, Any], evictor: str) -> None:
    """Compositions: with values on the host the same to the bit, in few bits the promised bytes."""
    options: dict[str, Any] = {"every": 3, "similarity": 0.5, "size": 16, "mode": "score_only"}
    options |= {"roles": "01/10", "heads.sink": 2, "heads.window": 6} if evictor == "heads" else {"window": 3}
    mode: dict[str, Any] = (
        {} if evictor == "heads" else {"keep": 0.5, "evict": "chunk" if evictor == "snapkv" else "post"}
    )
    found, reads = readers.run(f"refreshkv+{evictor}", options | way, chunk=20, **mode)
    plain, _ = readers.run(f"refreshkv+{evictor}", options, chunk=20, **mode)
    found.runner.cache.check()
    assert (found.sequence.rows.lens == plain.sequence.rows.lens).all()
    assert all(len(x) < 40 or evictor == "heads" for x in reads.values())
    if "store" not in way:
        assert found.generated == plain.generated
        assert all(torch.equal(a.logits, b.logits) for a, b in zip(found.passes, plain.passes, strict=True))
    pool = found.runner.cache.pool
    each = 8 + 8 // 8 * 4 - 4 if "store" in way else 32
    assert pool.kv_bytes + pool.host_entry_bytes == 2 * each
    assert (pool.host_entry_bytes > 0) == ("values" in way)


def test_a_fork_has_the_same_copies_and_its_own_future() -> None:
    from kvfoot.engine.clock import Clock
    from kvfoot.engine.sampler import Sampling

    found, _ = readers.run("refreshkv", {"store": 4, "every": 2}, budget=K, new=3)
    held = found.sequence.reading[0, (0, 1)].held
    before = held.k.clone()
    runner = found.runner
    twin = runner.fork(found.sequence, Sampling(), 0)
    assert twin.reading[0, (0, 1)].held is held
    logits = runner.feed(twin, tiny.tokens(5, 8), None)
    runner.decode([twin], [logits], 10, Sampling(), Clock())
    assert torch.equal(found.sequence.reading[0, (0, 1)].held.k, before)
    runner.cache.check()


def test_rectified_on_a_cache_in_few_bits() -> None:
    found, _ = readers.run("refreshkv", {"store": 8, "rectify": 6}, budget=K)
    assert found.kept()[0][0] == list(range(PROMPT + 29))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"store": 3}, "refreshkv: store=3: 8 or 4 bits, or none for the model's dtype"),
        ({"store": "few"}, "store='few' is not of type int"),
        ({"values": "disk"}, "values='disk' is none of device, host"),
        (
            {"values": "host"},
            "values=host: a refresh in mode=full reads the values of all entries: give mode=score_only",
        ),
        (
            {"values": "host", "mode": "score_only", "rectify": 8},
            "values=host: rectify reads the values of all entries",
        ),
        ({"values": "host", "mode": "score_only", "verify": 2}, "verify gives full attention's tokens"),
        ({"store": 8, "verify": 2}, "verify gives full attention's tokens, which a cache that is stored otherwise"),
    ],
)
def test_bad_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        find_method("refreshkv", options)


def test_what_a_model_refuses(tmp_path: Any) -> None:
    windowed = tiny.Strict(
        tiny.make("qwen3", layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=1, head_dim=16)
    )
    more: dict[str, Any] = {"method": "refreshkv", "budget": 8, "max_new_tokens": 4}
    with pytest.raises(
        UsageError, match="values=host: layers with a window of their own would fetch theirs every step"
    ):
        windowed.generate([tiny.tokens(20)], options={"values": "host", "mode": "score_only"}, **more)
    assert windowed.generate([tiny.tokens(20)], options={"store": 8}, **more)[0].tokens
