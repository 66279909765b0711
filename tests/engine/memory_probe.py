"""Run in a process of its own: peak and settled memory of one prefill, as JSON on stdout.

    memory_probe.py METHOD KEEP|- EVICT BACKEND

A random model whose dense cache is 1 GiB at 16,384 tokens: 64 KiB per token. Memory is the process's resident set as
the kernel counts it (VmHWM, reset after loading). The backend "thin" is sdpa over the newest entries only: the cache
does everything that it does for sdpa, in a fraction of the time.
"""

import gc
import json
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)

import tiny  # noqa: E402
from kvfoot.attention import sdpa  # noqa: E402
from kvfoot.attention.state import State  # noqa: E402
from kvfoot.cache.memory import trim  # noqa: E402
from kvfoot.core.budget import Budget  # noqa: E402
from kvfoot.core.registry import method as find_method  # noqa: E402
from kvfoot.engine.engine import Engine  # noqa: E402
from kvfoot.engine.sampler import Sampling  # noqa: E402

PROMPT, CHUNK = 16384, 512


class Thin:
    name = "thin"
    window_scores = staticmethod(sdpa.window_scores)
    column_scores = staticmethod(sdpa.column_scores)
    decode = staticmethod(sdpa.decode)
    piecewise = staticmethod(sdpa.piecewise)

    @staticmethod
    def attend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        causal: bool,
        visible: torch.Tensor | None = None,
    ) -> State:
        n = q.shape[2]
        return sdpa.attend(q, k[:, -n:], v[:, -n:], scale, causal)


def status(key: str) -> int:
    """Bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main(method: str, keep: str, evict: str, backend: str) -> None:
    model = tiny.make("llama", layers=16, kv_heads=8, group=1, head_dim=64, hidden=64, positions=1 << 15)
    engine = Engine(model, backend=Thin() if backend == "thin" else backend)  # type: ignore[arg-type]
    chosen = find_method(method)
    budget = Budget.of(None if keep == "-" else keep, None, evict)
    # Kernels and threads allocate what they keep before the measure starts.
    engine.generate([tiny.tokens(2 * CHUNK)], max_new_tokens=2, chunk=CHUNK)
    plan = engine.plan(chosen, budget, PROMPT, CHUNK, 8)
    gc.collect()
    trim(engine.device)
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    runner = engine.runner([plan], 8)
    sequence = runner.open(tiny.tokens(PROMPT), chosen, plan, Sampling(), 0)
    runner.prefill(sequence)
    pool = runner.cache.pool
    result = {
        "dense": PROMPT * engine.geometry.rows * engine.geometry.entry_bytes(4),
        "held": pool.held_bytes,
        "pool_peak": pool.peak_bytes,
        "base": base,
        "peak": status("VmHWM") - base,
        "settled": status("VmRSS") - base,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
