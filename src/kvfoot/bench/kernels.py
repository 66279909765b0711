"""The Triton kernels on a GPU: checked against their definitions, then timed at the shape of Llama-3.1-8B.

Checks run in processes side by side (kernel_checks.py). Decode is timed as a step does it: one plan, then 32 layers of
append, decode and merge in one CUDA graph. `of_copy` is bytes of keys and values per second over the bandwidth of a
device copy, bytes read plus bytes written, measured in the same run.
"""

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch.nn.functional import scaled_dot_product_attention as sdpa

from kvfoot.attention.triton.chunk_prefill import chunk_prefill
from kvfoot.attention.triton.column_scores import column_scores
from kvfoot.attention.triton.common import Launch
from kvfoot.attention.triton.compact import compact
from kvfoot.attention.triton.decode import decode, launch, planned
from kvfoot.attention.triton.locate import locate
from kvfoot.attention.triton.stream_prefill import stream_prefill
from kvfoot.attention.triton.window_scores import window_scores
from kvfoot.bench import kernel_checks
from kvfoot.bench.kernel_chunks import chunks, plans
from kvfoot.bench.kernel_refresh import refresh
from kvfoot.bench.kernel_rows import BF16, CUDA, DIM, ENTRY, GROUP, HEADS, LAYERS, PAGE, Arena, Step, captured
from kvfoot.bench.measure import copy_bandwidth, milliseconds
from kvfoot.core.files import write_whole

SHAPES = [
    # kind, length, batch
    *(("full", 1 << 13, b) for b in (1, 8, 24)),
    *(("full", 1 << 15, b) for b in (1, 8)),
    ("full", 1 << 17, 1),
    *(("12 %", m, b) for m in (1 << 13, 1 << 15, 1 << 17) for b in (1, 8, 24)),
    *(("30 % full, rest 128+1024", m, b) for m in (1 << 15, 1 << 17) for b in (1, 8)),
    ("30 % full, rest 128+1024", 1 << 15, 24),
]
SWEEP = [
    Launch(entries, warps, stages, per_sm=per_sm)
    for entries, warps, stages, per_sms in (
        (32, 4, 4, (4, 8)),
        (32, 4, 3, (4, 5)),
        (64, 4, 3, (3, 6)),
        (64, 4, 2, (3, 4)),
        (64, 8, 3, (2, 3)),
        (64, 8, 4, (2,)),
        (128, 8, 2, (2, 3)),
        (32, 2, 4, (4,)),
    )
    for per_sm in per_sms
]
SWEPT = [("full", 1 << 17, 1), ("12 %", 1 << 17, 1), ("12 %", 1 << 17, 24), ("30 % full, rest 128+1024", 1 << 17, 1)]
CHECKS = [
    (64, 7, 16, "bfloat16"),
    (64, 1, 64, "float16"),
    (80, 5, 32, "bfloat16"),
    (96, 16, 64, "bfloat16"),
    (128, 4, 16, "bfloat16"),
    (128, 4, 32, "float16"),
    (128, 8, 64, "bfloat16"),
    (256, 2, 16, "bfloat16"),
    (128, 4, 16, "float32"),
]


def decoding(arena: Arena, bandwidth: float) -> list[dict[str, Any]]:
    found = []
    for kind, length, batch in SHAPES:
        line = {"kind": kind, "length": length, "batch": batch}
        found.append(line | arena.rows(kind, length, batch).time(bandwidth))
        show("decode", found[-1])
    return found


def variants(arena: Arena, bandwidth: float) -> list[dict[str, Any]]:
    """What parts of a step cost, other pages, scores, and launches without a graph."""
    found = []
    for kind, length, batch in (("12 %", 1 << 17, 1), ("12 %", 1 << 17, 24)):
        step = arena.rows(kind, length, batch)
        most = int(step.lens.max())
        cases: dict[str, Callable[[], dict[str, float]]] = {
            "as is": partial(step.time, bandwidth),
            "no append": partial(step.time, bandwidth, writing=False),
            "emitting": partial(step.time, bandwidth, emit=most),
            "launched, no graph": partial(_launched, step),
        }
        other = partial(_other, arena, bandwidth, kind, length, batch)
        for page in (32, 64):
            cases[f"pages of {page}"] = partial(other, page=page)
        cases["pages in random order"] = partial(other, shuffled=True)
        for name, case in cases.items():
            found.append({"kind": kind, "length": length, "batch": batch, "variant": name} | case())
            show("variant", found[-1])
    return found


def _launched(step: Step) -> dict[str, float]:
    return {"ms": milliseconds(step.run, CUDA)}


def _other(arena: Arena, bandwidth: float, kind: str, length: int, batch: int, **pages: Any) -> dict[str, float]:
    """The same rows in other pages; made when they are measured, as they use the arena anew."""
    return arena.rows(kind, length, batch, **pages).time(bandwidth)


def sweep(arena: Arena, bandwidth: float) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for kind, length, batch in SWEPT:
        step = arena.rows(kind, length, batch)
        for how in SWEEP:
            line = {"kind": kind, "length": length, "batch": batch, "launch": vars(how)}
            found.append({**line, **step.time(bandwidth, how=how)})
        best = max(found[-len(SWEEP) :], key=lambda x: x["of_copy"])
        show("sweep, best", best)
    return found


def refreshes(arena: Arena) -> list[dict[str, Any]]:
    found = []
    for length, batch in ((1 << 17, 1), (1 << 15, 8)):
        for line in refresh(arena.rows("full", length, batch)):
            found.append({"length": length, "batch": batch} | line)
            show("refresh", found[-1])
    return found


def others(arena: Arena, bandwidth: float) -> list[dict[str, Any]]:
    """One layer of one sequence: prefill against a history, streaming heads, scores, eviction, a list."""
    found: list[dict[str, Any]] = []

    def add(name: str, run: Callable[[], object], flops: float = 0.0, moved: float = 0.0) -> None:
        ms = milliseconds(run, CUDA, repeat=5, warm=2)
        found.append({"case": name, "ms": ms})
        if flops:
            found[-1]["tflops"] = flops / ms / 1e9
        if moved:
            found[-1]["of_copy"] = moved / bandwidth * 1e3 / ms
        show("one layer", found[-1])

    n, scale = 8192, DIM**-0.5
    q = torch.randn(HEADS, GROUP, n, DIM, device="cuda").to(BF16)
    flat_q = q.view(1, HEADS * GROUP, n, DIM)
    lse = torch.zeros(HEADS, GROUP, n, device="cuda")
    for history in (0, 1 << 15, 1 << 17):
        m = history + n
        step = arena.rows("full", m, 1)
        table = step.table[0]
        lens = torch.full((HEADS,), m, dtype=torch.int32, device="cuda")
        k, v = step.k, step.v
        work = 4 * HEADS * GROUP * DIM * (n * history + n * n / 2)
        add(
            f"chunk of 8192, {history} before",
            partial(chunk_prefill, q, k, v, table, lens, scale, True),
            work,
        )
        dense = [x[table.long()].flatten(1, 2)[None, :, :m] for x in (k, v)]
        wide_k, wide_v = (x.repeat_interleave(GROUP, 1) for x in dense)
        if history:
            full = 4 * HEADS * GROUP * DIM * n * m
            add(f"torch SDPA, same, no mask, {m} entries", partial(sdpa, flat_q, wide_k, wide_v), full)
        else:
            add("torch SDPA, same", partial(sdpa, flat_q, wide_k, wide_v, is_causal=True), work)
        del wide_k, wide_v
        for name, run in chunks(dense[0][0], dense[1][0], n, scale).items():
            add(f"chunk of 8192, {history} before, {name}", run, work)
        del dense
    step = arena.rows("full", 1152 + n, 1)
    lens = torch.full((HEADS,), 1152 + n, dtype=torch.int32, device="cuda")
    given = (q, step.k, step.v, step.table[0], lens, scale)
    add(
        "stream, chunk of 8192, 128+1024",
        lambda: stream_prefill(*given, 128, 1024),
        4 * HEADS * GROUP * DIM * n * 1152.0,
    )
    m = 1 << 15
    step = arena.rows("full", m, 1)
    lens = torch.full((HEADS,), m, dtype=torch.int32, device="cuda")
    given_k = (step.k, step.table[0], lens)
    add(
        "columns of 8192 queries, 32K",
        lambda: column_scores(q, *given_k, lse, scale, m),
        2 * HEADS * GROUP * DIM * (n * m - n * n / 2),
    )
    m = 1 << 17
    step = arena.rows("full", m, 1)
    lens = torch.full((HEADS,), m, dtype=torch.int32, device="cuda")
    keys = HEADS * m * ENTRY / 2
    add("window of 32, 128K", lambda: window_scores(q[:, :, :32], step.k, step.table[0], lens, scale, m), 0.0, 2 * keys)
    kept = torch.rand(HEADS, m, device="cuda").topk(m // 8, sorted=False).indices.sort().values
    counts = torch.full((HEADS,), m // 8, dtype=torch.int32, device="cuda")
    fresh = step.table[1]
    planes = (step.k, step.v)
    add(
        "compact, 1 of 8 of 128K",
        lambda: compact(planes, step.table[0], kept, counts, fresh),
        0.0,
        2 * HEADS * m // 8 * ENTRY,
    )
    one = q[:, :, 0].contiguous()
    slots = locate(step.table[0], kept, counts, PAGE)
    flat_k, flat_v = (x.view(-1, 1, DIM) for x in planes)
    plan = planned(counts[None], DIM, BF16)
    listed = captured(lambda: decode(one, flat_k, flat_v, slots, counts, scale, plan=plan))
    add("decode, a list of 1 of 8 of 128K", listed.replay, 0.0, HEADS * m // 8 * ENTRY)
    return found


def show(what: str, line: dict[str, Any]) -> None:
    print(what, *(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in line.items()), flush=True)


def checks(jobs: int, patience: float) -> list[dict[str, Any]]:
    tasks: list[tuple[str, tuple[Any, ...]]] = [("far", ()), ("replay", ())]
    tasks += [("operations", case) for case in CHECKS]
    tasks += [("configuration", (how,)) for how in {Launch(h.entries, h.warps, h.stages): h for h in SWEEP}.values()]
    tasks += [("configuration", (launch(DIM, BF16), page)) for page in (32, 64)]
    found: list[dict[str, Any]] = []
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    futures = [(task, pool.submit(kernel_checks.run, task)) for task in tasks]
    wait([future for _, future in futures], timeout=patience)
    for task, future in futures:
        problem = future.exception() if future.done() else f"not done after {patience:.0f} s"
        if problem is None:
            found += future.result()
        else:
            text = problem if isinstance(problem, str) else "".join(traceback.format_exception(problem))
            found.append({"case": str(task), "op": "raised", "error": text[-1500:], "ok": False})
    pool.shutdown(wait=False, cancel_futures=True)
    for child in multiprocessing.active_children():
        child.kill()  # only one that hangs is left
    for line in found:
        if not line["ok"]:
            show("FAILED", line)
    print(f"checks: {sum(x['ok'] for x in found)} of {len(found)} passed", flush=True)
    return found


def kernels(command: str, out: Path | None, jobs: int, limit: float) -> bool:
    """Run all parts; the record is written after each. jobs: checks at a time; limit: seconds after which no new part
    is begun. Whether every check passed."""
    begin = time.perf_counter()
    card = torch.cuda.get_device_properties(0)
    record: dict[str, Any] = {
        "command": command,
        "device": card.name,
        "multiprocessors": card.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "shape": {
            "layers": LAYERS,
            "kv_heads": HEADS,
            "group": GROUP,
            "head_size": DIM,
            "page": PAGE,
            "dtype": "bfloat16",
        },
        "launch": vars(launch(DIM, BF16)),
    }

    def part(name: str, run: Callable[[], Any]) -> None:
        if time.perf_counter() - begin > limit:
            record[name] = f"not run: {limit:.0f} s were over"
        else:
            record[name] = run()
        record["seconds"] = round(time.perf_counter() - begin, 1)
        if out is not None:
            write_whole(out, json.dumps(record, indent=1) + "\n")
        print(f"-- {name}: {record['seconds']} s", flush=True)

    part("checks", lambda: checks(jobs, 0.6 * limit))
    part("copy_bytes_per_second", lambda: copy_bandwidth(CUDA))
    bandwidth = record["copy_bytes_per_second"]
    if isinstance(bandwidth, float):
        print(f"copy: {bandwidth / 1e12:.3f} TB/s", flush=True)
        arena = Arena()
        part("decode", lambda: decoding(arena, bandwidth))
        part("refresh", lambda: refreshes(arena))
        part("sweep", lambda: sweep(arena, bandwidth))
        part("variants", lambda: variants(arena, bandwidth))
        part("one_layer", lambda: others(arena, bandwidth))
        part("plans", plans)
    return all(x["ok"] for x in record["checks"])
