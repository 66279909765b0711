"""One forward pass of a padded batch [B, T], run as steps over packed tokens [1, T']: see engine/lanes.py."""

from collections.abc import Sequence as Many
from dataclasses import replace

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.cache.kv import KVCache
from kvfoot.cache.trace import Trace
from kvfoot.core.errors import NotFinite
from kvfoot.engine.lanes import Lane, Piece, States, pieces, ranks
from kvfoot.engine.step import Span, Step


class Forward:
    """B rows of T columns; of lane i, columns [first, T) are tokens.

    Pieces of one lane follow each other layer by layer: the second attends to what the first one's cut has left, as if
    each had been a pass of its own.
    """

    def __init__(self, cache: KVCache, backend: Backend, lanes: Many[tuple[Lane, int, int]], B: int, T: int):
        self.cache, self.backend, self.B, self.T = cache, backend, B, T
        each = [pieces(lane, first, stop) for lane, first, stop in lanes]
        self.open = [piece for own in each for piece in own if not piece.whole]
        self.padded = any(first for _, first, _ in lanes) or len(lanes) < B
        self.steps: list[tuple[Step, list[Piece], list[int]]] = []
        self.checks: list[Tensor] = []
        rows = [lane.sequence.rows for lane, _, _ in lanes]
        lens = [r.lens for r in rows]
        self.seen = [r.seen for r in rows]
        for rank, some in enumerate(ranks(each)):
            at, spans = 0, []
            for piece in some:
                sequence = piece.lane.sequence
                if rank:  # what the earlier pieces will leave, by the plan
                    sequence.rows.lens = sequence.promised.copy()
                spans.append(Span(sequence, at, at + piece.n, piece.cut))
                at += piece.n
            starts = [piece.lane.sequence.rows.seen for piece in some]
            self.steps.append((Step(cache, backend, spans), some, starts))
            for piece in some:
                piece.lane.sequence.rows.seen += piece.n
        self.ends = [r.seen for r in rows]
        self.rows = rows
        for r, own in zip(rows, lens, strict=True):
            r.lens = own

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [B, heads, T, D], k and v [B, kv_heads, T, D] -> [B, T, heads, D], zero at pads."""
        B, heads, T, D = q.shape
        out = q.new_zeros(B, T, heads, D) if self.padded else q.new_empty(B, T, heads, D)
        with torch.inference_mode():  # whatever the caller's mode: scratch made in one is not to be written in another
            self._attend(layer, (q, k, v), scale, out)
        return out

    def _attend(self, layer: int, every: States, scale: float, out: Tensor) -> None:
        for step, some, starts in self.steps:
            for piece, start in zip(some, starts, strict=True):
                piece.lane.sequence.rows.seen = start
            packed = _pack([_joined(piece, layer, every) for piece in some])
            found = step.attend(layer, *packed, scale)[0]
            at = 0
            for piece in some:
                at += piece.n
                out[piece.lane.index, piece.start : piece.stop] = found[at - piece.stop + piece.start : at]
                piece.lane.held.pop(layer, None)
        for piece in self.open:
            states = _joined(piece, layer, every)
            found = self._glance(piece, layer, states, scale)
            out[piece.lane.index, piece.start : piece.stop] = found[piece.before :]
            piece.lane.held[layer] = (states[0].clone(), states[1].clone(), states[2].clone())

    def done(self) -> None:
        """All layers have been through. Raises NotFinite."""
        for rows, end in zip(self.rows, self.ends, strict=True):
            rows.seen = end
        for step, _, _ in self.steps:
            if not bool(torch.isfinite(torch.stack(step.checks)).all()):
                raise NotFinite(step._blame())

    def _glance(self, piece: Piece, layer: int, states: States, scale: float) -> Tensor:
        """Attention [n, heads, D] of a pass that is not whole yet, on a fork of the layer's rows."""
        sequence, cache = piece.lane.sequence, self.cache
        rows, twin = sequence.rows, cache.open()
        shared = rows.forked
        twin.forked = rows.forked = True
        twin.seen = piece.lane.read - piece.n
        twin.lens[layer] = rows.lens[layer]
        twin.pages[layer] = [ids.copy() for ids in rows.pages[layer]]
        twin.ordered[layer] = rows.ordered[layer]
        for ids in twin.pages[layer]:
            cache.pool.share(ids)
        guest = replace(
            sequence,
            rows=twin,
            plan=replace(sequence.plan, passes=(), later=None, planes=()),
            trace=Trace(cache.geometry, 0, 0),
            promised=twin.lens.copy(),
        )
        found = Step(cache, self.backend, [Span(guest, 0, piece.n, None)]).attend(layer, *_pack([states]), scale)
        cache.release(twin)
        rows.forked = shared
        return found[0]


def _joined(piece: Piece, layer: int, every: States) -> States:
    """The pass's tokens of one lane as far as they have come: those held, then the new ones."""
    own = [x[piece.lane.index, :, piece.start : piece.stop] for x in every]
    if piece.before:
        own = [torch.cat(pair, 1) for pair in zip(piece.lane.held[layer], own, strict=True)]
    return own[0], own[1], own[2]


def _pack(states: list[States]) -> States:
    """One packed axis: [1, heads, T', D]."""
    if len(states) == 1:
        q, k, v = (x[None] for x in states[0])
    else:
        q, k, v = (torch.cat(parts, 1)[None] for parts in zip(*states, strict=True))
    return q, k, v
