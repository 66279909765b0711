"""What a method is shown: the rows of one layer after a pass, with the scores and values that it asked for (D5)."""

import numpy as np
import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.cache.kv import KVCache
from kvfoot.cache.memory import send
from kvfoot.cache.trace import Pass, triangle
from kvfoot.core.hooks import POSITION, Needs, Seen
from kvfoot.core.reading import Reader
from kvfoot.engine.reading import state_bytes
from kvfoot.engine.span import Span


def begin_pass(span: Span) -> None:
    """A pass begins: it is in the sequence's trace, and in the plan's arithmetic, from here on."""
    sequence = span.sequence
    before = sequence.rows.lens.copy()
    span.due = None if span.cut is None else span.cut.due(before, span.n)
    passed = Pass(span.n, sequence.rows.seen, before, span.patch, scan(span, before))
    if isinstance(sequence.method, Reader):
        passed.side = state_bytes([*sequence.reading.values(), *sequence.past.values()])
    if span.reads or span.begins:
        passed.scan = np.zeros(before.shape)
    if span.reads:
        passed.loaded, passed.refreshed = before + 1, np.zeros(before.shape)
        if sequence.later is not None:
            passed.refreshed[~np.stack([sequence.later.spares(i) for i in range(len(before))])] = np.nan
    sequence.trace.passes.append(passed)
    sequence.promise(span.n, span.cut)


def look(span: Span, layer: int, heads: tuple[int, ...], b: int, device: torch.device) -> Seen:
    """The pass as a method sees it, of its own entries alone so far; b are stored."""
    start, n = span.sequence.rows.seen, span.n
    positions = torch.arange(start, start + n, device=device).expand(len(heads), n)
    planes = {POSITION.name: positions[..., None]}
    rows = send(np.array(heads), device)
    left = max(0, span.sequence.prompt - start - n)
    return Seen(layer, rows, positions, start, n, b + n, planes=planes, patched=span.patch > 0, left=left)


def ask(
    cache: KVCache,
    backend: Backend,
    span: Span,
    seen: Seen,
    heads: tuple[int, ...],
    b: int,
    q: Tensor,
    keys: Tensor,
    lse: Tensor,
    scale: float,
    first: int = 0,
) -> tuple[dict[str, Tensor], Seen | None]:
    """The planes [R, b, width] of the stored entries after the pass, and what the method is to choose from.

    q: [R, H, n + patch, D]; keys: [R, b + n + patch - first, D], from entry `first` on; lse: of the pass's attention.
    """
    sequence, n, u, layer = span.sequence, span.n, span.patch, seen.layer
    method, rows = sequence.method, sequence.rows
    if b:
        seen.positions = torch.cat([cache.positions(rows, layer, heads), seen.positions], 1)
        seen.planes[POSITION.name] = seen.positions[..., None]
    for plane in sequence.plan.planes[1:]:
        stored = cache.plane(rows, layer, heads, plane.name)
        seen.planes[plane.name] = torch.cat([stored, stored.new_zeros(len(heads), n, plane.width)], 1)
    if Needs.COLUMN_SCORES in method.needs:
        seen.scores = backend.column_scores(q, keys, lse, scale)
    seen.planes |= method.observe(seen)
    old = {name: value[:, :b] for name, value in seen.planes.items()}
    if span.cut is None or span.due is None or not span.due[layer, heads[0]]:
        return old, None
    scope = b if span.cut.scope == "new" else 0
    if Needs.WINDOW_SCORES in method.needs:
        w = u or min(n, method.observers)
        scores = backend.window_scores(q[:, :, q.shape[2] - w :], keys[:, scope - first :], scale)
        seen.scores = scores[..., : scores.shape[2] - u]
    shown = keys[:, scope - first : b + n - first]
    chosen = Seen(
        layer,
        seen.heads,
        seen.positions[:, scope:],
        seen.start,
        n,
        int(span.cut.counts[layer, heads[0]]),
        seen.scores,
        {name: value[:, scope:] for name, value in seen.planes.items()},
        # Of a ragged cut all blocks are looked at before one is committed: their histories share the scratch.
        (shown.clone() if span.cut.ragged else shown) if Needs.KEYS in method.needs else None,
        seen.patched,
        seen.left,
    )
    return old, chosen


def rescores(span: Span) -> bool:
    """Whether the pass's queries are asked for once more after their attention."""
    return bool(span.sequence.method.needs & (Needs.WINDOW_SCORES | Needs.COLUMN_SCORES))


def looks_back(span: Span, layer: int, heads: tuple[int, ...]) -> bool:
    """Whether stored keys are scored, or stored entries chosen among, after the pass."""
    due = span.cut is not None and span.due is not None and bool(span.due[layer, heads[0]])
    scored = Needs.COLUMN_SCORES in span.sequence.method.needs and bool(span.sequence.plan.planes)
    return scored or (due and span.cut is not None and span.cut.scope == "all")


def scan(span: Span, before: np.ndarray) -> np.ndarray | None:
    """Pairs that score keys a second time, int64 [layers, kv_heads]: of the queries that score, what each may see.

    A method that looks at the keys themselves reads each of those in scope once.
    """
    method, n, u = span.sequence.method, span.n, span.patch
    if Needs.COLUMN_SCORES in method.needs and span.sequence.plan.planes:
        return triangle(n) + n * before
    if span.cut is None or span.due is None:
        return None
    scope = n if span.cut.scope == "new" else before + n
    pairs: int | np.ndarray = 0
    if Needs.WINDOW_SCORES in method.needs:
        w = u or min(n, method.observers)
        pairs = w * (scope + u) - triangle(w - 1)
    if Needs.KEYS in method.needs:
        pairs = pairs + scope
    return np.where(span.due, pairs, 0)
