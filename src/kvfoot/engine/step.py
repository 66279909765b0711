"""The flow: one forward pass of one or more sequences, from tokens to logits, layer by layer.

    tokens [1, T] -> model (Hugging Face, unmodified) -> per layer: q, k, v -> history -> attention -> scores
        -> method.observe, method.keep -> cache.commit (survivors stay, pages are freed) -> logits at each span's end

A pass packs spans of several sequences end to end: a prompt chunk is one span of n tokens, a decode step is one span of
one token per sequence. Nothing is padded, so a sequence's numbers do not depend on its neighbours.
"""

from collections.abc import Sequence as Spans
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.cache.kv import KVCache
from kvfoot.cache.trace import Pass, triangle
from kvfoot.core.budget import Cut
from kvfoot.core.errors import NotFinite
from kvfoot.core.hooks import POSITION, Keep, Needs, Seen
from kvfoot.engine.sequence import Sequence
from kvfoot.models.bridge import PassCache


@dataclass
class Span:
    """n = stop - start new tokens of a sequence, at packed[start:stop), and the cut that follows."""

    sequence: Sequence
    start: int
    stop: int
    cut: Cut | None

    @property
    def n(self) -> int:
        return self.stop - self.start


class Step:
    """One pass. `forward` runs it; `attend` is what the model's attention calls in every layer."""

    def __init__(self, cache: KVCache, backend: Backend, spans: Spans[Span]):
        self.cache, self.backend, self.spans = cache, backend, spans
        geometry = cache.geometry
        self.checks: list[Tensor] = []
        cache.pool.require(sum(cache.forecast(s.sequence.rows, s.n, s.cut) for s in spans))
        for span in spans:
            sequence = span.sequence
            before = sequence.rows.lens.copy()
            sequence.trace.passes.append(Pass(span.n, sequence.rows.seen, before, scan=_scan(span, before)))
            sequence.promise(span.n, span.cut)
        self.group = (geometry.kv_heads, geometry.group)

    @torch.inference_mode()
    def forward(self, model: Any, tokens: Spans[int]) -> Tensor:
        """Logits fp32 [spans, vocabulary] after each span's last token. tokens: the packed spans, T in all.

        Raises NotFinite where the logits or a layer's attention are NaN or infinite, naming the layer.
        """
        device = self.cache.pool.device
        positions = [s.sequence.rows.seen + i for s in self.spans for i in range(s.n)]
        last = torch.tensor([s.stop - 1 for s in self.spans], device=device)
        output = model(
            input_ids=torch.tensor([list(tokens)], device=device),
            position_ids=torch.tensor([positions], device=device),
            past_key_values=PassCache(self.attend, positions[0]),
            use_cache=True,
            logits_to_keep=last,
        )
        for span in self.spans:
            span.sequence.rows.seen += span.n
        logits = output.logits[0].float()
        if not bool(torch.isfinite(logits).all() & torch.isfinite(torch.stack(self.checks)).all()):
            raise NotFinite(self._blame())
        return logits

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [1, heads, T, D], k and v [1, kv_heads, T, D] after RoPE -> attention output [1, T, heads, D]."""
        G, H = self.group
        T, D = q.shape[2], q.shape[3]
        out = torch.empty(T, G, H, D, dtype=q.dtype, device=q.device)
        q_GHTD, k_GTD, v_GTD = q[0].view(G, H, T, D), k[0], v[0]
        for span in self.spans:
            inside = slice(span.start, span.stop)
            for heads, b in self.cache.blocks(span.sequence.rows, layer, span.cut):
                every = len(heads) == G
                rows = slice(None) if every else list(heads)
                q_RHnD, k_RnD, v_RnD = q_GHTD[rows, :, inside], k_GTD[rows, inside], v_GTD[rows, inside]
                out_RHnD = self._block(span, layer, heads, b, q_RHnD, k_RnD, v_RnD, scale)
                out[inside, rows] = out_RHnD.permute(2, 0, 1, 3).to(out.dtype)
        # torch's CPU kernel takes a query whose logits are all NaN for a masked one and answers 0: look at q and k too.
        self.checks.append(sum((x.sum(dtype=torch.float32) for x in (q, k)), out.sum(dtype=torch.float32)))
        return out.view(1, T, G * H, D)

    def _block(
        self, span: Span, layer: int, heads: tuple[int, ...], b: int, q: Tensor, k: Tensor, v: Tensor, scale: float
    ) -> Tensor:
        """R rows of equal length b: attention output [R, H, n, D]; commits the new entries."""
        cache, sequence, n = self.cache, span.sequence, span.n
        if b:
            keys, values = cache.history(sequence.rows, layer, heads, room=n)
            keys[:, b:], values[:, b:] = k, v
        else:
            keys, values = k, v
        state = self.backend.attend(q, keys, values, scale, True)
        new: dict[str, Tensor] = {}
        old: dict[str, Tensor] = {}
        keep: Keep | None = None
        if sequence.plan.planes:
            seen = self._seen(span, layer, heads, b)
            if span.cut is not None or len(sequence.plan.planes) > 1:
                old, keep = self._ask(span, seen, heads, b, q, keys, state.lse, scale)
            new = {name: value[:, -n:] for name, value in seen.planes.items()}
        cache.commit(sequence.rows, layer, heads, keys, values, new, old, span.cut, keep)
        return state.out

    def _seen(self, span: Span, layer: int, heads: tuple[int, ...], b: int) -> Seen:
        """The pass as a method sees it, of its own entries alone so far."""
        start, n, device = span.sequence.rows.seen, span.n, self.cache.pool.device
        positions = torch.arange(start, start + n, device=device).expand(len(heads), n)
        planes = {POSITION.name: positions[..., None]}
        return Seen(layer, torch.tensor(heads, device=device), positions, start, n, b + n, planes=planes)

    def _ask(
        self,
        span: Span,
        seen: Seen,
        heads: tuple[int, ...],
        b: int,
        q: Tensor,
        keys: Tensor,
        lse: Tensor,
        scale: float,
    ) -> tuple[dict[str, Tensor], Keep | None]:
        """The planes [R, b, width] of the stored entries after the pass, and what the method wants kept."""
        cache, sequence, n = self.cache, span.sequence, span.n
        method, rows = sequence.method, sequence.rows
        if b:
            seen.positions = torch.cat([cache.positions(rows, seen.layer, heads), seen.positions], 1)
            seen.planes[POSITION.name] = seen.positions[..., None]
        for plane in sequence.plan.planes[1:]:
            stored = cache.plane(rows, seen.layer, heads, plane.name)
            seen.planes[plane.name] = torch.cat([stored, stored.new_zeros(len(heads), n, plane.width)], 1)
        if Needs.COLUMN_SCORES in method.needs:
            seen.scores = self.backend.column_scores(q, keys, lse, scale)
        seen.planes |= method.observe(seen)
        old = {name: value[:, :b] for name, value in seen.planes.items()}
        scope = b if span.cut is not None and span.cut.scope == "new" else 0
        limit = b + n if span.cut is None else int(span.cut.counts[seen.layer, heads[0]])
        if limit >= b + n - scope:
            return old, None
        if Needs.WINDOW_SCORES in method.needs:
            w = min(n, method.observers)
            seen.scores = self.backend.window_scores(q[:, :, n - w :], keys[:, scope:], scale)
        chosen = Seen(
            seen.layer,
            seen.heads,
            seen.positions[:, scope:],
            seen.start,
            n,
            limit,
            seen.scores,
            {name: value[:, scope:] for name, value in seen.planes.items()},
            keys[:, scope:] if Needs.KEYS in method.needs else None,
        )
        return old, method.keep(chosen)

    def _blame(self) -> str:
        bad = [i for i, check in enumerate(self.checks) if not bool(torch.isfinite(check))]
        where = f"attention of layer {bad[0]}" if bad else "the last layer's output"
        return (
            f"NaN or infinite values, first in {where}: the weights are damaged or the numbers overflow in this dtype "
            "(try --dtype float32)"
        )


def _scan(span: Span, before: np.ndarray) -> np.ndarray | None:
    """Pairs that score keys a second time, int64 [layers, kv_heads]: of the queries that score, what each may see.

    A method that looks at the keys themselves reads each of those in scope once.
    """
    method, n = span.sequence.method, span.n
    if Needs.COLUMN_SCORES in method.needs and span.sequence.plan.planes:
        return triangle(n) + n * before
    if span.cut is None:
        return None
    scope = n if span.cut.scope == "new" else before + n
    pairs: int | np.ndarray = 0
    if Needs.WINDOW_SCORES in method.needs:
        w = min(n, method.observers)
        pairs = w * scope - triangle(w - 1)
    if Needs.KEYS in method.needs:
        pairs = pairs + scope
    return np.where(span.cut.counts < scope, pairs, 0)
