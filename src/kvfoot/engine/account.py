"""From what happened to the record: clocks, pool and traces in, RunRecord out."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import Any

import torch

from kvfoot.core.records import Footprint, Memory, RunRecord, SequenceRecord, mean
from kvfoot.engine.clock import Clock
from kvfoot.engine.runner import Runner
from kvfoot.engine.sequence import Sequence


def record(
    runner: Runner,
    sequences: list[Sequence],
    clock: Clock,
    config: dict[str, Any],
    revision: str,
    seed: int,
    interrupted: bool = False,
) -> RunRecord:
    """The batch's record. An interrupted run is recorded as far as it came."""
    pool, geometry = runner.cache.pool, runner.cache.geometry
    each = [
        SequenceRecord(
            prompt=s.prompt,
            generated=len(s.generated),
            footprint=s.trace.footprint(),
            kept=(s.rows.lens if s.held is None else s.held).tolist(),
            strides=[stride if isfinite(stride) else None for stride in s.trace.strides()],
        )
        for s in sequences
    ]
    dense = geometry.rows * geometry.entry_bytes(pool.dtype.itemsize) * sum(s.prompt for s in sequences)
    held = clock.held if clock.prefill is not None else pool.held_bytes
    memory = Memory(
        held_bytes=held,
        peak_bytes=pool.peak_bytes,
        dense_bytes=dense,
        host_held_bytes=held // pool.page_bytes * pool.host_page_bytes,
        host_peak_bytes=pool.host_peak_bytes,
        side_bytes=sum(max((p.side for p in s.trace.passes), default=0) for s in sequences),
    )
    return RunRecord(
        footprint=mean([s.footprint for s in each]) if each else Footprint(0, 0, 0, 0),
        memory=memory,
        timings=clock.timings(),
        tokens={"prompt": sum(s.prompt for s in each), "generated": sum(s.generated for s in each)},
        config=config,
        revision=revision,
        packages=packages(),
        device=device(pool.device),
        seed=seed,
        sequences=each,
        interrupted=interrupted,
    )


@cache
def packages() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    found = {"python": platform.python_version()}
    for name in ("kvfoot", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def device(of: torch.device) -> dict[str, Any]:
    """The device's name and, on a CPU, the threads that torch uses."""
    if of.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(of)}
    return {"type": of.type, "name": _cpu(), "threads": torch.get_num_threads()}


@cache
def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
