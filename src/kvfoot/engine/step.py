"""The flow: one forward pass of one or more sequences, from tokens to logits, layer by layer.

    tokens [1, T] -> model (Hugging Face, unmodified) -> per layer: q, k, v -> history -> attention -> scores
        -> method.observe, method.keep -> cache.commit (survivors stay, pages are freed) -> logits at each span's end

A pass packs spans of several sequences end to end: a prompt chunk is one span of n tokens, a decode step is one span of
one token per sequence. Nothing is padded, so a sequence's numbers do not depend on its neighbours.
"""

from collections.abc import Sequence as Spans
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.state import Ragged
from kvfoot.cache.kv import KVCache
from kvfoot.cache.memory import current
from kvfoot.core.errors import NotFinite, UsageError
from kvfoot.core.hooks import POSITION, Keep
from kvfoot.core.reading import Reader
from kvfoot.engine import reading
from kvfoot.engine.chunk import Chunk
from kvfoot.engine.look import ask, begin_pass, look, looks_back, rescores
from kvfoot.engine.span import Block, Heads, Span
from kvfoot.models.bridge import Call, PassCache
from kvfoot.models.rotation import Rotation

WINDOW_QUERIES = 1024
"""Most queries of a window layer that are attended at once: each block sees its own stretch of keys."""


class Step:
    """One pass. `forward` runs it; `attend` is what the model's attention calls in every layer."""

    def __init__(self, cache: KVCache, backend: Backend, spans: Spans[Span], rotation: Rotation | None = None):
        self.cache, self.backend, self.spans, self.rotation = cache, backend, spans, rotation
        self.checks: list[Tensor] = []
        self._places = _places(spans)
        cache.pool.require(sum(cache.forecast(s.sequence.rows, s.n, s.cut) for s in spans))
        for span in spans:
            begin_pass(span)

    @torch.inference_mode()
    def forward(self, model: Any, tokens: Spans[int], every: bool = False) -> Tensor:
        """Logits fp32 [spans, vocabulary] after each span's last token, or after `every` one. tokens: the packed spans.

        Raises NotFinite where the logits or a layer's attention are NaN or infinite, naming the layer.
        """
        device = self.cache.pool.device
        if any(span.past for span in self.spans):
            tokens = self._widen(tokens)
        positions = [
            0 if s.unturned else s.sequence.rows.seen + i for s in self.spans for i in range(-s.past, s.n + s.patch)
        ]
        last = torch.tensor(range(len(tokens)) if every else [s.stop - 1 for s in self.spans], device=device)
        with current(device):
            output = model(
                input_ids=torch.tensor([list(tokens)], device=device),
                position_ids=torch.tensor([positions], device=device),
                past_key_values=PassCache(self.attend, self.spans[0].sequence.rows.seen),
                use_cache=True,
                logits_to_keep=last,
            )
        for span in self.spans:
            if isinstance(span.sequence.method, Reader) and span.sequence.method.tokens > 1:
                recent = span.sequence.recent + list(tokens[span.start : span.stop])
                span.sequence.recent = recent[1 - span.sequence.method.tokens :]
        self.done()
        logits = output.logits[0].float()
        if not bool(torch.isfinite(logits).all() & torch.isfinite(torch.stack(self.checks)).all()):
            raise NotFinite(blame([bool(torch.isfinite(check)) for check in self.checks]))
        return logits

    def done(self) -> None:
        """All layers have been through `attend`."""
        for span in self.spans:
            span.sequence.rows.seen += span.n
            span.sequence.trace.passes[-1].settle()
            if span.begins:
                span.sequence.begun = span.sequence.rows.seen

    def attend(self, call: Call) -> Tensor:
        """One layer: q [1, heads, T, D], k and v [1, kv_heads, T, D] -> attention output [1, T, heads, D]."""
        geometry, layer = self.cache.geometry, call.layer
        if call.window != geometry.window(layer):
            raise UsageError(
                f"layer {layer} asks for a window of {call.window} tokens, the config for {geometry.window(layer)}"
            )
        part = Heads(call, geometry.kv_heads, geometry.group)
        if self._places is not None:
            assert self.rotation is not None
            at, below = self._places
            at = at.to(part.k.device)
            self._places = at, below
            part.turn(self.rotation, at, below)
        windowed = geometry.window(layer) is not None
        quiet = [] if windowed else [span for span in self.spans if span.appends]
        if quiet:
            self._decode(part, quiet)
        for span in self.spans:
            if windowed:
                self._slide(part, span)
            elif span.reads:
                if span.cut is not None:
                    self._attend(part, span, ruled=True)
                reading.read(self.cache, self.backend, span, part, self.rotation)
            elif not span.appends:
                self._attend(part, span)
                if span.begins:
                    reading.begin(self.cache, self.backend, span, part, self.rotation)
        # torch's CPU kernel takes a query whose logits are all NaN for a masked one and answers 0: look at q and k too.
        parts = (call.q, call.k, part.out)
        self.checks.append(torch.stack([x.sum(dtype=torch.float32) for x in parts]).sum())
        return part.out.view(1, part.out.shape[0], -1, part.out.shape[3])

    def _widen(self, tokens: Spans[int]) -> list[int]:
        """The packed tokens with those that are read once more, each before its span."""
        found: list[int] = []
        for span in self.spans:
            own = tokens[span.packed]
            found += span.sequence.recent[len(span.sequence.recent) - span.past :]
            span.start, span.stop = len(found), len(found) + span.n
            found += own
        return found

    def _decode(self, part: Heads, spans: Spans[Span]) -> None:
        """Spans of one token that only append: stored first, then one attention over all their rows, ragged or not."""
        cache, layer = self.cache, part.layer
        for span in spans:
            at, rows = slice(span.start, span.stop), span.sequence.rows
            new = (
                {POSITION.name: part.k.new_full((len(part.k), 1, 1), rows.seen, dtype=torch.int32)}
                if span.sequence.plan.planes
                else {}
            )
            cache.extend(rows, layer, part.k[:, at], part.v[:, at], new)
        tables = [cache.table(span.sequence.rows, layer) for span in spans]
        most = max(table.shape[1] for table in tables)
        whole = [torch.cat([t, t[:, :1].expand(-1, most - t.shape[1])], 1) if t.shape[1] < most else t for t in tables]
        lens = np.concatenate([span.sequence.rows.lens[layer] for span in spans])
        ragged = Ragged(torch.cat(whole) if len(whole) > 1 else whole[0], lens)
        places = [span.start for span in spans]
        H, D = part.q.shape[1], part.q.shape[3]
        q_RHD = part.q[:, :, places].permute(2, 0, 1, 3).reshape(-1, H, D)
        state = self.backend.decode(q_RHD, cache.pool.k, cache.pool.v, ragged, part.scale)
        part.write_steps(state, places)

    def _slide(self, part: Heads, span: Span) -> None:
        """A layer with a window of its own: a query sees the last `window` positions, and no more than them is kept."""
        rows, layer, n = span.sequence.rows, part.layer, span.n + span.patch
        window, heads = self.cache.geometry.window(layer), tuple(range(len(part.k)))
        assert window is not None
        b = int(rows.lens[layer, 0])
        q, k, v = part.q[:, :, span.packed], part.k[:, span.packed], part.v[:, span.packed]
        new = torch.arange(rows.seen, rows.seen + n, device=k.device)
        if span.renumbered:  # distances inside a window are what they are: no rank is needed
            assert self.rotation is not None
            at = range(rows.seen, rows.seen + n)
            q, k = self.rotation(layer, q, at), self.rotation(layer, k[:, None], at)[:, 0]
        keys, values = self._history(span, layer, heads, b, k, v)
        positions = torch.cat([self.cache.positions(rows, layer, (0,))[0], new])
        for start in range(0, n, WINDOW_QUERIES):
            stop = min(start + WINDOW_QUERIES, n)
            first = 0 if start < window - 1 else b + start - window + 1  # the block's first query sees that far back
            some, own = slice(first, b + stop), positions[b + start : b + stop, None]
            visible = (positions[some] <= own) & (positions[some] > own - window)
            state = self.backend.attend(
                q[:, :, start:stop], keys[:, some], values[:, some], part.scale, True, visible[None]
            )
            part.write(state, slice(span.start + start, span.start + stop))
        end = b + span.n
        self.cache.slide(rows, layer, keys[:, :end], values[:, :end])

    def _attend(self, part: Heads, span: Span, ruled: bool = False) -> None:
        """A chunk, or a step that observes or evicts: block by block of rows of equal length.

        ruled: of a reader's step, only the rows from which something is taken while decoding.
        """
        sequence, layer = span.sequence, part.layer
        ragged = span.cut is not None and span.cut.ragged and span.due is not None and bool(span.due[layer, 0])
        blocks: list[Block] = []
        chunk = Chunk.of(self.cache, self.backend, part, span)
        for heads, b in self.cache.blocks(sequence.rows, layer, span.cut, sequence.plan.band):
            if ruled and span.cut is not None and span.cut.spares(layer)[heads[0]]:
                continue
            block = self._block(part, span, heads, b, chunk)
            if ragged:
                blocks.append(block)
            else:
                self._commit(span, layer, block, None if block.seen is None else sequence.method.keep(block.seen))
        if ragged:
            own = slice(span.start, span.stop)
            self._divide(span, layer, blocks, part.k[:, own], part.v[:, own])

    def _block(self, part: Heads, span: Span, heads: tuple[int, ...], b: int, chunk: Chunk | None) -> Block:
        """R rows of equal length b: their attention output is written; what is to be committed comes back."""
        sequence, n, layer = span.sequence, span.n, part.layer
        rows = part.rows(heads)
        q, k, v = part.q[:, :, span.packed], part.k[rows][:, span.packed], part.v[rows][:, span.packed]
        if chunk is None or rescores(span):
            q = q[rows]
        own = chunk is not None and b > 0 and not looks_back(span, layer, heads)
        lse = None if chunk is None else chunk.attend(heads, b)
        keys, values = (k, v) if own else self._history(span, layer, heads, b, k, v)
        stored = keys
        if lse is None:
            if span.renumbered:
                q, keys = self._renumber(span, layer, heads, q, keys)
            visible = self._visible(span, layer, heads, keys)
            state = self.backend.attend(q, keys, values, part.scale, True, visible)
            lse = part.write(state, span.packed, rows).lse
        new: dict[str, Tensor] = {}
        old: dict[str, Tensor] = {}
        chosen = None
        if sequence.plan.planes:
            seen = look(span, layer, heads, b, self.cache.pool.device)
            if span.projected:
                seen.fresh = part.projections(slice(span.start, span.stop))
            if span.cut is not None or len(sequence.plan.planes) > 1:
                given = (heads, b, q, keys, lse, part.scale, b if own else 0)
                old, chosen = ask(self.cache, self.backend, span, seen, *given)
            new = {name: value[:, -n:] for name, value in seen.planes.items()}
        size = n if own else b + n
        return Block(heads, b, stored[:, :size], values[:, :size], new, old, chosen, own)

    def _history(
        self, span: Span, layer: int, heads: tuple[int, ...], b: int, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The b stored entries and the pass's own, keys and values [R, b + n + patch, D]."""
        if not b:
            return k, v
        keys, values = self.cache.history(span.sequence.rows, layer, heads, room=k.shape[1])
        keys[:, b:], values[:, b:] = k, v
        return keys, values

    def _renumber(
        self, span: Span, layer: int, heads: tuple[int, ...], q: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys rotated to their ranks in the row (PRE_ROPE): stored entries by position, then the pass."""
        assert self.rotation is not None
        R, _, n, _ = q.shape
        b = keys.shape[1] - n
        q = self.rotation(layer, q, range(b, b + n))
        if span.sequence.rows.ordered[layer]:
            return q, self.rotation(layer, keys[:, None], range(b + n))[:, 0]
        stored = self.cache.positions(span.sequence.rows, layer, heads).argsort(1).argsort(1)
        own = torch.arange(b, b + n, device=q.device).expand(R, n)
        return q, self.rotation(layer, keys[:, None], torch.cat([stored, own], 1))[:, 0]

    def _visible(self, span: Span, layer: int, heads: tuple[int, ...], keys: Tensor) -> Tensor | None:
        """bool [R, n, b + n]: what rows with a band see; None where everything stored is seen."""
        band, rows = span.sequence.plan.band, span.sequence.rows
        if band is None or not band.rows[layer, heads[0]]:
            return None
        n = span.n + span.patch
        own = torch.arange(rows.seen, rows.seen + n, device=keys.device)
        p = torch.cat([self.cache.positions(rows, layer, heads), own.expand(len(heads), n)], 1)[:, None]
        q = own[None, :, None]
        return (p <= q) & ((p > q - band.window) | (p < band.sink))

    def _commit(self, span: Span, layer: int, block: Block, keep: Keep | None) -> None:
        rows, kv = span.sequence.rows, (block.keys, block.values)
        self.cache.commit(rows, layer, block.heads, *kv, block.new, block.old, span.cut, keep, block.own)

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
            if len(blocks) == 1 or block.b == 0 or block.own:
                keys, values = block.keys[some], block.values[some]
            else:  # the scratch that held this block's history has gone to the next one
                keys, values = self.cache.history(sequence.rows, layer, heads, room=n)
                keys[:, block.b :], values[:, block.b :] = k[list(heads)], v[list(heads)]
            new = {name: value[some] for name, value in block.new.items()}
            old = {name: value[some] for name, value in block.old.items()}
            seen = block.seen.rows(some, count)
            keep = sequence.method.keep(seen) if count < seen.size else None
            self._commit(span, layer, Block(heads, block.b, keys, values, new, old, seen, block.own), keep)


def _places(spans: Spans[Span]) -> tuple[Tensor, int] | None:
    """Where the packed tokens are to be rotated to, int64 [T], 0 where the model has done it; and one more than the
    furthest. None: the model has done it everywhere."""
    if not any(span.projected for span in spans):
        return None
    each = [(s.sequence.rows.seen + i) * s.projected for s in spans for i in range(-s.past, s.n + s.patch)]
    return torch.tensor(each), max(each) + 1


def blame(finite: Spans[bool]) -> str:
    """Where NaN or infinite values came from; finite: of every layer's attention."""
    bad = [i for i, good in enumerate(finite) if not good]
    where = f"attention of layer {bad[0]}" if bad else "the last layer's output"
    return (
        f"NaN or infinite values, first in {where}: the weights are damaged or the numbers overflow in this dtype "
        "(try --dtype float32)"
    )
