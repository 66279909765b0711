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
from kvfoot.engine.span import Span
from kvfoot.engine.step import Step, blame
from kvfoot.models.bridge import Call
from kvfoot.models.rotation import Rotation


class Forward:
    """B rows of T columns; of lane i, columns [first, T) are tokens.

    Pieces of one lane follow each other layer by layer: the second attends to what the first one's cut has left, as if
    each had been a pass of its own.
    """

    def __init__(
        self,
        cache: KVCache,
        backend: Backend,
        lanes: Many[tuple[Lane, int, int]],
        B: int,
        T: int,
        rotation: Rotation | None = None,
    ):
        self.cache, self.backend, self.B, self.T, self.rotation = cache, backend, B, T, rotation
        each = [pieces(lane, first, stop) for lane, first, stop in lanes]
        self.open = [piece for own in each for piece in own if not piece.whole]
        self.padded = any(first for _, first, _ in lanes) or len(lanes) < B
        self.steps: list[tuple[Step, list[Piece], list[int]]] = []
        self.checks: list[Tensor] = []
        rows = [lane.sequence.rows for lane, _, _ in lanes]
        lens = [r.lens for r in rows]
        for rank, some in enumerate(ranks(each)):
            at, spans = 0, []
            for piece in some:
                sequence = piece.lane.sequence
                if rank:  # what the earlier pieces will leave, by the plan
                    sequence.rows.lens = sequence.promised.copy()
                spans.append(Span(sequence, at, at + piece.n, piece.cut))
                at += piece.n
            starts = [piece.lane.sequence.rows.seen for piece in some]
            self.steps.append((Step(cache, backend, spans, rotation), some, starts))
            for piece in some:
                piece.lane.sequence.rows.seen += piece.n
        for r, own in zip(rows, lens, strict=True):
            r.lens = own

    def attend(self, call: Call) -> Tensor:
        """q [B, heads, T, D], k and v [B, kv_heads, T, D] -> [B, T, heads, D], zero at pads."""
        B, heads, T, D = call.q.shape
        out = call.q.new_zeros(B, T, heads, D) if self.padded else call.q.new_empty(B, T, heads, D)
        with torch.inference_mode():  # whatever the caller's mode: scratch made in one is not to be written in another
            self._attend(call, out)
        return out

    def _attend(self, call: Call, out: Tensor) -> None:
        for step, some, starts in self.steps:
            for piece, start in zip(some, starts, strict=True):
                piece.lane.sequence.rows.seen = start
            found = step.attend(_packed(call, [_joined(piece, call) for piece in some]))[0]
            at = 0
            for piece in some:
                at += piece.n
                out[piece.lane.index, piece.start : piece.stop] = found[at - piece.stop + piece.start : at]
                piece.lane.held.pop(call.layer, None)
        for piece in self.open:
            states = _joined(piece, call)
            out[piece.lane.index, piece.start : piece.stop] = self._glance(piece, _packed(call, [states]))[
                piece.before :
            ]
            piece.lane.held[call.layer] = (states[0].clone(), states[1].clone(), states[2].clone())

    def done(self) -> None:
        """All layers have been through. Raises NotFinite."""
        for step, some, starts in self.steps:
            for piece, start in zip(some, starts, strict=True):
                piece.lane.sequence.rows.seen = start
            step.done()
            if not bool(torch.isfinite(torch.stack(step.checks)).all()):
                raise NotFinite(blame([bool(torch.isfinite(check)) for check in step.checks]))

    def _glance(self, piece: Piece, call: Call) -> Tensor:
        """Attention [n, heads, D] of a pass that is not whole yet, on a fork of the layer's rows."""
        sequence, cache, layer = piece.lane.sequence, self.cache, call.layer
        rows, twin = sequence.rows, cache.open()
        shared = rows.forked
        twin.forked = rows.forked = True
        twin.seen = piece.lane.read - piece.n
        twin.lens[layer] = rows.lens[layer]
        twin.pages[layer] = [ids.copy() for ids in rows.pages[layer]]
        twin.ordered[layer], twin.turn[layer] = rows.ordered[layer], rows.turn[layer]
        for ids in twin.pages[layer]:
            cache.pool.share(ids)
        guest = replace(
            sequence,
            rows=twin,
            plan=replace(sequence.plan, passes=(), later=None, planes=()),
            trace=Trace(cache.geometry, 0, 0),
            promised=twin.lens.copy(),
        )
        found = Step(cache, self.backend, [Span(guest, 0, piece.n, None)], self.rotation).attend(call)
        cache.release(twin)
        rows.forked = shared
        return found[0]


def _joined(piece: Piece, call: Call) -> States:
    """The pass's tokens of one lane as far as they have come: those held, then the new ones."""
    own = [x[piece.lane.index, :, piece.start : piece.stop] for x in (call.q, call.k, call.v)]
    if piece.before:
        own = [torch.cat(pair, 1) for pair in zip(piece.lane.held[call.layer], own, strict=True)]
    return own[0], own[1], own[2]


def _packed(call: Call, states: list[States]) -> Call:
    """The same call over one packed axis: [1, heads, T', D]."""
    q, k, v = (parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in zip(*states, strict=True))
    return replace(call, q=q[None], k=k[None], v=v[None])
