"""The footprint, measured on real runs, against the integers of specs/prulong.md 1.7 (arXiv 2506.17121)."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import stub
import tiny
from kvfoot.cache.trace import Pass, Trace, released
from kvfoot.core.geometry import Geometry
from kvfoot.engine.sequence import Sequence

BIG = 1 << 30


def per_row(sequence: Sequence) -> tuple[int, int]:
    """Pairs and peak of one row of many equal ones."""
    rows = sequence.trace.geometry.rows
    kv, peak = sequence.trace.kv(), sequence.trace.peak()
    assert kv % rows == 0
    assert peak % rows == 0
    return kv // rows, peak // rows


VECTORS = [
    # N, M, C, S, W, kept fraction, k, T, streaming, evict with + k, evict with k = 0
    (1000, 50, 256, 16, 64, 0.3, 64, 551_775, (189_286, 336), (361_265, 655), (254_769, 463)),
    (4096, 128, 1024, 128, 1024, 0.5, 64, 8_923_200, (5_654_656, 2176), (5_941_312, 2752), (5_515_328, 2560)),
]


@pytest.mark.parametrize("vector", VECTORS, ids=["N=1000", "N=4096"])
def test_vectors(vector: Any) -> None:
    N, M, C, S, W, kept, k, T, streaming, more, exact = vector
    share = lambda n: round(Fraction(str(kept)) * n)  # noqa: E731
    engine = stub.engine()
    found = stub.measure(
        engine,
        N,
        M,
        {
            "full": stub.full(N, C),
            "streaming": stub.held(engine, N, C, S + W),
            "more": stub.chunked(engine, N, C, lambda n: min(share(n) + k, n)),
            "exact": stub.chunked(engine, N, C, share),
        },
    )
    assert found["full"].trace.dense() == T
    assert per_row(found["full"]) == (T, N + M)
    assert per_row(found["streaming"]) == streaming
    assert per_row(found["more"]) == more
    assert per_row(found["exact"]) == exact
    # What the released script would have said of the run that kept exactly the fraction.
    assert released(found["exact"].trace.passes, 1 - kept, k) == more
    assert released(found["exact"].trace.passes, 1 - kept, 0) == exact


TOY = {
    "full attention": ("full", {}, {}, [6, 15, 7, 8], 36, 8),
    "post-fill, keep 2": ("snapkv", {"window": 1}, {"keep": "1/3", "evict": "post"}, [6, 15, 3, 4], 28, 6),
    "chunked, keep 1 each": ("snapkv", {"window": 1}, {"keep": "1/3", "evict": "chunk"}, [6, 9, 3, 4], 22, 4),
    "streaming 1 + 1": ("streaming", {"sink": 1}, {"budget": 2, "evict": "chunk"}, [6, 12, 3, 3], 24, 5),
}


@pytest.mark.parametrize("policy", list(TOY))
def test_toy_table(policy: str) -> None:
    """N = 6, M = 2, C = 3, with the published methods on a real model."""
    name, options, mode, passes, total, peak = TOY[policy]
    engine = tiny.Strict(tiny.llama(), page_size=2)
    run = tiny.run(engine, tiny.tokens(6), name, options, chunk=3, new=3, **mode)
    trace = run.sequence.trace
    each = [Trace(trace.geometry, 1, 1, [p]).kv() // trace.geometry.rows for p in trace.passes]
    assert each == passes
    assert per_row(run.sequence) == (total, peak)
    assert trace.dense() == 36 * trace.geometry.rows
    assert trace.footprint().kv == total / 36
    assert trace.footprint().peak == peak / 8


# C: percent of post-fill, chunked, chunked as released, a streaming head, Duo/PruLong at 70 % streaming heads.
REALISTIC = {
    98_304: ("98.57", "98.57", "98.57", "97.97", "98.58"),
    32_768: ("98.57", "52.86", "52.99", "34.20", "53.94"),
    8_192: ("98.57", "35.73", "36.44", "10.29", "37.20"),
    2_048: ("98.57", "31.42", "34.48", "4.31", "33.02"),
}


@pytest.mark.parametrize("chunk", list(REALISTIC))
def test_realistic_table(chunk: int) -> None:
    N, M, S, W, T = 98_304, 1_024, 128, 1_024, 4_933_075_456
    engine = stub.engine(kv_heads=10)
    share = lambda n: round(Fraction(3, 10) * n)  # noqa: E731
    found = stub.measure(
        engine,
        N,
        M,
        {
            "post": stub.post(engine, N, chunk, 3 * 9_830),
            "chunked": stub.chunked(engine, N, chunk, share),
            "streaming": stub.held(engine, N, chunk, S + W),
            "heads": stub.held(engine, N, chunk, *[S + W] * 7, *[BIG] * 3),
        },
    )
    traces = {name: s.trace for name, s in found.items()}
    assert {t.dense() for t in traces.values()} == {10 * T}
    percent = {name: f"{100 * t.footprint().kv:.2f}" for name, t in traces.items()}
    extra = f"{100 * released(traces['chunked'].passes, 0.7, 64)[0] / T:.2f}"
    row = (percent["post"], percent["chunked"], extra, percent["streaming"], percent["heads"])
    assert row == REALISTIC[chunk]
    assert per_row(found["post"])[0] == 4_862_609_920
    if chunk == 32_768:
        assert per_row(found["chunked"]) == (2_607_712_768, 52_428)
        assert per_row(found["streaming"])[0] == 1_687_340_032
        assert traces["heads"].kv() == 7 * 1_687_340_032 + 3 * T
        # 53.6 %. The specification's 53.9 % adds the two kinds' own maxima, which fall on different passes.
        assert traces["heads"].peak() == 7 * (S + W + chunk) + 3 * N
        assert round(100 * traces["post"].footprint().peak) == 99


@pytest.mark.parametrize("chunk", [7, 64, None])
@pytest.mark.parametrize("kind", list(tiny.MODELS))
def test_full_is_one_in_all_four(kind: str, chunk: int | None) -> None:
    run = tiny.run(tiny.Strict(tiny.MODELS[kind]()), tiny.tokens(75), chunk=chunk, new=5)
    found = run.sequence.trace.footprint()
    assert (found.kv, found.peak, found.read, found.bytes) == (1, 1, 1, 1)


def test_one_generated_token_needs_no_decode_pass() -> None:
    run = tiny.run(tiny.Strict(tiny.llama()), tiny.tokens(20), new=1)
    assert [p.n for p in run.sequence.trace.passes] == [20]


# Hand computations for N = 6 in chunks of 3 and 3 generated tokens (two decode passes), per row; full attention: 36.
# h2o holds 2: passes see 0, 2, 2, 2 stored entries: kv 6 + 12 + 3 + 3 = 24, and every pass scans what it attends to.
# snapkv, keep 2/3 of 3: passes see 0, 2, 4, 5: kv 6 + 12 + 5 + 6 = 29; its scans are two queries over the chunk's own
# three keys, 2 + 3 = 5 pairs, after either chunk; decode appends without a scan.
# snapkv under a budget of 4: passes see 0, 3, 4, 4: kv 6 + 15 + 5 + 5 = 31; nothing is cut after the first chunk, then
# two queries over six entries, 5 + 6 = 11 pairs, then one query over five entries twice, 10 pairs.
READS = {
    "h2o": ("h2o", {}, {"keep": "1/3", "evict": "chunk"}, 24, 24, 4 + 4),
    "h2o, a mass per query head": ("h2o", {"group": "max"}, {"keep": "1/3", "evict": "chunk"}, 24, 24, 4 + 3 * 4),
    "snapkv": ("snapkv", {"window": 2}, {"keep": "2/3", "evict": "chunk"}, 29, 5 + 5, 4),
    "snapkv, budget": ("snapkv", {"window": 2}, {"budget": 4, "evict": "chunk"}, 31, 11 + 10, 4),
    "streaming": ("streaming", {"sink": 1}, {"budget": 2, "evict": "chunk"}, 24, 0, 4),
}


@pytest.mark.parametrize("case", list(READS))
def test_read_and_bytes_by_hand(case: str) -> None:
    name, options, mode, kv, scans, side = READS[case]
    run = tiny.run(tiny.Strict(tiny.llama(), page_size=2), tiny.tokens(6), name, options, chunk=3, new=3, **mode)
    trace = run.sequence.trace
    rows, dense = trace.geometry.rows, 2 * 8 * 4
    assert trace.kv() == kv * rows
    assert trace.read() == (kv + scans / 2) * rows
    found = trace.footprint()
    assert found.kv == pytest.approx(kv / 36, rel=1e-12)
    assert found.read == pytest.approx((kv + scans / 2) / 36, rel=1e-12)
    assert found.bytes == pytest.approx(kv * (dense + side) / (36 * dense), rel=1e-12)


def test_a_scan_counts_half_of_what_attention_reads() -> None:
    """H2O sums every query's attention: a second look at the keys alone of everything that it attends to."""
    run = tiny.run(tiny.Strict(tiny.llama()), tiny.tokens(75), "h2o", keep=0.5, evict="chunk", chunk=16, new=5)
    assert run.sequence.trace.read() == 1.5 * run.sequence.trace.kv()


def naive(geometry: Geometry, passes: list[Pass]) -> tuple[int, int]:
    """Dense and stored pairs, query by query and key by key."""
    dense = stored = 0
    for layer in range(geometry.layers):
        window = geometry.window(layer) or 1 << 40
        for head in range(geometry.kv_heads):
            for p in passes:
                b = int(p.before[layer, head])
                for i in range(p.n):
                    dense += min(p.seen, window - 1) + i + 1
                    stored += b + i + 1
                for i in range(p.uncommitted):
                    stored += b + p.n + i + 1
    return dense, stored


def test_the_folds_equal_counting_pairs() -> None:
    """Ragged rows, uncommitted tokens and native windows included."""
    geometry = Geometry(2, 3, 1, 4, 100, windows=(None, 5))
    random = np.random.default_rng(0)
    passes, seen = [], 0
    for n in (7, 3, 1, 5, 1):
        passes.append(Pass(n, seen, random.integers(0, seen + 1, (2, 3)), uncommitted=int(random.integers(0, 4))))
        seen += n
    trace = Trace(geometry, 1, 1, passes)
    assert (trace.dense(), trace.kv()) == naive(geometry, passes)
    assert trace.peak() == max(int((p.before + p.n + p.uncommitted).sum()) for p in passes)
    assert trace.dense_peak() == max(3 * (p.seen + p.n) + 3 * (min(p.seen, 4) + p.n) for p in passes)


def test_a_record_holds_the_mean_over_its_batch() -> None:
    engine = tiny.Strict(tiny.llama())
    prompts = [tiny.tokens(n, n) for n in (75, 31, 20)]
    mode: dict[str, Any] = {"keep": 0.5, "evict": "chunk", "chunk": 16}
    record = engine.generate(prompts, method="snapkv", options={"window": 3}, max_new_tokens=4, **mode)[0].record
    each = [tiny.run(engine, p, "snapkv", {"window": 3}, new=4, **mode).sequence.trace.footprint() for p in prompts]
    assert [s.footprint for s in record.sequences] == each
    for field in ("kv", "peak", "read", "bytes"):
        assert getattr(record.footprint, field) == pytest.approx(sum(getattr(f, field) for f in each) / 3, rel=1e-12)
