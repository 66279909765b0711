"""Attention of past tokens, corrected by what later steps read (RetroAttention, arXiv 2508.09001).

A step of such a reader is a pass over the newest token and the `past` ones before it. In each layer a past token has an
output and its normaliser from the steps before; what the newest token reads and the past one has not is attended by the
past token's query as it is in this pass, and joined by log-sum-exp. The joined output goes on into the layers above,
whose entries of that token are written anew. Older parts of it were attended with the query that the token had then:
from the second layer on the sum is an approximation, in the first one it is exact.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.state import State, merge
from kvfoot.cache.kv import KVCache
from kvfoot.engine.span import Heads, Span


@dataclass(frozen=True)
class Past:
    """What the last tokens have attended to so far in one layer: out fp32 [R, H, past, D], lse fp32 [R, H, past]."""

    out: Tensor
    lse: Tensor


def correct(
    cache: KVCache,
    backend: Backend,
    span: Span,
    part: Heads,
    heads: tuple[int, ...],
    newest: State,
    slots: Tensor | None,
    unseen: Tensor | None,
) -> None:
    """Write the past tokens' attention and remember the newest one's.

    newest: out [R, H, D], lse [R, H]; slots: int64 [R, c], what it read; unseen: bool [R, past, c], what of that is new
    to a past token, None where nothing is.
    """
    sequence, layer, own = span.sequence, part.layer, list(heads)
    old = sequence.past.get((layer, heads))
    if span.past:
        assert old is not None
        where = slice(span.start - span.past, span.start)
        state = State(old.out, old.lse)
        if unseen is not None:
            assert slots is not None
            k, v = cache.take(sequence.rows, layer, heads, slots)
            found = backend.attend(part.q[own][:, :, where], k, v, part.scale, causal=False, visible=unseen)
            nothing = ~unseen.any(-1)[:, None]  # such a row of a softmax is undefined
            lse = found.lse.masked_fill(nothing, -torch.inf)
            state = merge(state, State(found.out.float().masked_fill(nothing[..., None], 0.0), lse))
            p = sequence.trace.passes[-1]
            p.counts.append((layer, heads, unseen.sum((1, 2))))
        part.write(state, where, own)
        old = Past(state.out, state.lse)
    out, lse = newest.out.float()[:, :, None], newest.lse[..., None]
    if old is not None:
        out, lse = torch.cat([old.out, out], 2), torch.cat([old.lse, lse], 2)
    most = sequence.method.tokens - 1  # type: ignore[attr-defined]
    sequence.past[layer, heads] = Past(out[:, :, -most:], lse[..., -most:])
