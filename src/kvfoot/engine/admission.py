"""How large the page pool may be, and whether a run fits beside it: said before the run, by its plan's arithmetic."""

from collections.abc import Sequence as Many
from typing import Any

from kvfoot.attention.sdpa import BLOCK_ELEMENTS
from kvfoot.core.errors import PoolExhausted, UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Plan

GIB = 2**30


def check_size(size: int | float | None) -> None:
    """Raises UsageError for a pool size that is none: bytes (int), or a fraction (float)."""
    if isinstance(size, float) and not 0 < size <= 1:
        raise UsageError(f"kv_memory={size}: a fraction of what is free is in (0, 1], such as 0.9; bytes are an int")
    if isinstance(size, int) and size < 1:
        raise UsageError(f"kv_memory={size}: give bytes, or a fraction such as 0.9")


def workspace(config: Any, geometry: Geometry, plans: Many[Plan], itemsize: int) -> int:
    """Bytes that a run needs beside weights and pool at its worst pass, an estimate from above.

    A layer's activations of the largest pass, its queries and keys among them; one layer's gathered history; a block of
    scores, and those that readers choose by; the lists that they read, of all layers; logits of every sequence.
    """
    tokens = max(p.stop - p.start + (p.patch[1] - p.patch[0] if p.patch else 0) for plan in plans for p in plan.passes)
    longest = max(plan.passes[-1].stop for plan in plans)
    hidden = config.hidden_size
    wide = getattr(config, "intermediate_size", 0) or 4 * hidden
    heads = geometry.kv_heads * (2 * geometry.group + 2) * geometry.head_dim
    activations = tokens * (4 * hidden + 3 * wide + heads) * itemsize
    history = geometry.kv_heads * (longest + tokens) * 2 * geometry.head_dim * itemsize * 5 // 4
    logits = len(plans) * config.vocab_size * (itemsize + 3 * 4)
    readers = sum(plan.reads is not None for plan in plans)
    scores = 2 * 4 * (BLOCK_ELEMENTS + readers * geometry.kv_heads * geometry.group * (longest + tokens))
    scores += readers * geometry.kv_heads * (longest + tokens) * 5 * 4
    lists = 8 * geometry.layers * geometry.kv_heads * sum((plan.reads or 0) + 1 for plan in plans)
    return activations + history + scores + logits + lists


def pool_bytes(size: int | float | None, free: int, workspace: int) -> int | None:
    """The pool's bytes: as given, or that fraction of what is free beside the workspace; None where nothing was asked.

    Raises PoolExhausted where the workspace alone does not fit.
    """
    if size is None or isinstance(size, int):
        return size
    if workspace >= free:
        raise PoolExhausted(
            f"a run's workspace of {workspace / GIB:.2f} GiB does not fit into the {free / GIB:.2f} GiB that are free: "
            "use a smaller chunk or batch"
        )
    return int(size * (free - workspace))


def check_fits(pages: int, page_bytes: int, workspace: int, free: int) -> None:
    """Raises PoolExhausted, in place of an out-of-memory error in the middle of a run on an accelerator."""
    need = pages * page_bytes
    if need + workspace > free:
        raise PoolExhausted(
            f"the cache needs {pages} pages, {need / GIB:.2f} GiB, and a run {workspace / GIB:.2f} GiB beside it; "
            f"{free / GIB:.2f} GiB are free on the device: use a smaller keep, budget, chunk or batch"
        )
