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
    """n = stop - start new tokens of a sequence, at packed[start:stop), and the cut that follows.

    due: bool [layers, kv_heads], rows from which the cut takes something.
    """

    sequence: Sequence
    start: int
    stop: int
    cut: Cut | None
    due: np.ndarray | None = None

    @property
    def n(self) -> int:
        return self.stop - self.start


@dataclass
class Block:
    """Rows of one layer and of equal length after attention, before their commit.

    keys, values: [R, b + n, D]; new, old: planes of the n new and of the b stored entries; seen: what the method is to
    choose from, None where everything stays.
    """

    heads: tuple[int, ...]
    b: int
    keys: Tensor
    values: Tensor
    new: dict[str, Tensor]
    old: dict[str, Tensor]
    seen: Seen | None


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
            span.due = None if span.cut is None else span.cut.due(before, span.n)
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
            ragged = span.cut is not None and span.cut.ragged and span.due is not None and span.due[layer, 0]
            blocks: list[Block] = []
            for heads, b in self.cache.blocks(span.sequence.rows, layer, span.cut):
                every = len(heads) == G
                rows = slice(None) if every else list(heads)
                q_RHnD, k_RnD, v_RnD = q_GHTD[rows, :, inside], k_GTD[rows, inside], v_GTD[rows, inside]
                out_RHnD, block = self._block(span, layer, heads, b, q_RHnD, k_RnD, v_RnD, scale)
                out[inside, rows] = out_RHnD.permute(2, 0, 1, 3).to(out.dtype)
                if ragged:
                    blocks.append(block)
                else:
                    keep = None if block.seen is None else span.sequence.method.keep(block.seen)
                    self._commit(span, layer, block, keep)
            if ragged:
                self._divide(span, layer, blocks, k_GTD[:, inside], v_GTD[:, inside])
        # torch's CPU kernel takes a query whose logits are all NaN for a masked one and answers 0: look at q and k too.
        self.checks.append(sum((x.sum(dtype=torch.float32) for x in (q, k)), out.sum(dtype=torch.float32)))
        return out.view(1, T, G * H, D)

    def _block(
        self, span: Span, layer: int, heads: tuple[int, ...], b: int, q: Tensor, k: Tensor, v: Tensor, scale: float
    ) -> tuple[Tensor, Block]:
        """R rows of equal length b: attention output [R, H, n, D], and what is to be committed."""
        cache, sequence, n = self.cache, span.sequence, span.n
        if b:
            keys, values = cache.history(sequence.rows, layer, heads, room=n)
            keys[:, b:], values[:, b:] = k, v
        else:
            keys, values = k, v
        state = self.backend.attend(q, keys, values, scale, True)
        new: dict[str, Tensor] = {}
        old: dict[str, Tensor] = {}
        chosen: Seen | None = None
        if sequence.plan.planes:
            seen = self._seen(span, layer, heads, b)
            if span.cut is not None or len(sequence.plan.planes) > 1:
                old, chosen = self._ask(span, seen, heads, b, q, keys, state.lse, scale)
            new = {name: value[:, -n:] for name, value in seen.planes.items()}
        return state.out, Block(heads, b, keys, values, new, old, chosen)

    def _commit(self, span: Span, layer: int, block: Block, keep: Keep | None) -> None:
        rows = span.sequence.rows
        self.cache.commit(rows, layer, block.heads, block.keys, block.values, block.new, block.old, span.cut, keep)

    def _divide(self, span: Span, layer: int, blocks: list[Block], k: Tensor, v: Tensor) -> None:
        """A ragged cut (decision 0006): the method divides the layer's sum, then chooses for rows of equal count.

        k, v: [kv_heads, n, D], the pass's own. Rows that shrink go first, so that the layer never owns more pages than
        before or after.
        """
        sequence, n = span.sequence, span.n
        counts = iter(sequence.method.allocate([block.seen for block in blocks if block.seen is not None]))
        parts: dict[tuple[int, int], list[int]] = {}
        for i, block in enumerate(blocks):
            for row in range(len(block.heads)):
                parts.setdefault((next(counts), i), []).append(row)
        for (count, i), index in sorted(parts.items(), key=lambda part: part[0][0] - blocks[part[0][1]].b):
            block = blocks[i]
            assert block.seen is not None
            some = slice(index[0], index[0] + 1) if len(index) == 1 else index
            heads = tuple(block.heads[row] for row in index)
            if len(blocks) == 1 or block.b == 0:
                keys, values = block.keys[some], block.values[some]
            else:  # the scratch that held this block's history has gone to the next one
                keys, values = self.cache.history(sequence.rows, layer, heads, room=n)
                keys[:, block.b :], values[:, block.b :] = k[list(heads)], v[list(heads)]
            new = {name: value[some] for name, value in block.new.items()}
            old = {name: value[some] for name, value in block.old.items()}
            seen = block.seen.rows(some, count)
            keep = sequence.method.keep(seen) if count < seen.size else None
            self._commit(span, layer, Block(heads, block.b, keys, values, new, old, seen), keep)

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
    ) -> tuple[dict[str, Tensor], Seen | None]:
        """The planes [R, b, width] of the stored entries after the pass, and what the method is to choose from."""
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
        if span.cut is None or span.due is None or not span.due[seen.layer, heads[0]]:
            return old, None
        scope = b if span.cut.scope == "new" else 0
        limit = int(span.cut.counts[seen.layer, heads[0]])
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
            # Of a ragged cut all blocks are looked at before one is committed: their histories share the scratch.
            (keys[:, scope:].clone() if span.cut.ragged else keys[:, scope:]) if Needs.KEYS in method.needs else None,
        )
        return old, chosen

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
    if span.cut is None or span.due is None:
        return None
    scope = n if span.cut.scope == "new" else before + n
    pairs: int | np.ndarray = 0
    if Needs.WINDOW_SCORES in method.needs:
        w = min(n, method.observers)
        pairs = w * scope - triangle(w - 1)
    if Needs.KEYS in method.needs:
        pairs = pairs + scope
    return np.where(span.due, pairs, 0)
