"""What one pass does with one sequence, and rows between their attention and their commit."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvfoot.attention.state import State, sink
from kvfoot.cache.memory import send
from kvfoot.core.budget import Cut
from kvfoot.core.hooks import POSITION, Needs, Projections, Seen
from kvfoot.core.reading import Reader
from kvfoot.engine.sequence import Sequence
from kvfoot.models.bridge import Call
from kvfoot.models.rotation import Rotation


@dataclass
class Span:
    """n = stop - start new tokens of a sequence, at packed[start:stop), and the cut that follows.

    patch: tokens right behind them, at packed[stop:stop + patch), that observe and are not stored.
    due: bool [layers, kv_heads], rows from which the cut takes something.
    reads: a reader chooses what this token attends to. begins: the last pass of its prompt, after which it can.
    dense: neither, although it may be one token: everything is read and no state is made. anew: begins once more.
    past: tokens right before it, at packed[start - past:start), that are stored and read once more (engine/correct.py).
    """

    sequence: Sequence
    start: int
    stop: int
    cut: Cut | None
    due: np.ndarray | None = None
    patch: int = 0
    reads: bool = False
    begins: bool = False
    dense: bool = False
    anew: bool = False
    past: int = 0

    def __post_init__(self) -> None:
        sequence = self.sequence
        if isinstance(sequence.method, Reader) and not self.dense:
            self.reads = self.n == 1 and sequence.begun is not None and not self.anew
            self.begins = not self.reads and sequence.rows.seen + self.n >= sequence.prompt
            if self.reads:
                self.past = min(sequence.method.tokens, sequence.steps) - 1

    @property
    def n(self) -> int:
        return self.stop - self.start

    @property
    def packed(self) -> slice:
        """Places of its tokens in the pass, the patch's included."""
        return slice(self.start, self.stop + self.patch)

    @property
    def renumbered(self) -> bool:
        return Needs.PRE_ROPE in self.sequence.method.needs

    @property
    def unrotates(self) -> bool:
        method = self.sequence.method
        return isinstance(method, Reader) and method.unrotates

    @property
    def projected(self) -> bool:
        return Needs.PROJECTIONS in self.sequence.method.needs

    @property
    def unturned(self) -> bool:
        """The model is given position 0: the engine rotates."""
        return self.renumbered or self.projected

    @property
    def appends(self) -> bool:
        """One token that every row takes in, with nothing to observe and nothing to evict: the quiet decode step."""
        sequence = self.sequence
        quiet = self.cut is None and sequence.plan.band is None and not self.renumbered
        quiet = quiet and not isinstance(sequence.method, Reader)
        return self.n == 1 and not self.patch and quiet and all(p is POSITION for p in sequence.plan.planes)


@dataclass
class Block:
    """Rows of one layer and of equal length after attention, before their commit.

    keys, values: [R, b + n, D]; new, old: planes of the n new and of the b stored entries; seen: what the method is to
    choose from, None where everything stays. own: keys and values are those of the n new entries, [R, n, D].
    """

    heads: tuple[int, ...]
    b: int
    keys: Tensor
    values: Tensor
    new: dict[str, Tensor]
    old: dict[str, Tensor]
    seen: Seen | None
    own: bool = False


class Heads:
    """A layer's queries, keys and values by KV head, and its output.

    q: [G, H, T, D], k and v: [G, T, D], out: [T, G, H, D], with H query heads for each of G KV heads.
    sinks: fp32 [G, H] or None, the logits that take a share of the softmax (GPT-OSS).
    """

    def __init__(self, call: Call, kv_heads: int, group: int):
        T, D = call.q.shape[2:]
        self.layer, self.scale = call.layer, call.scale
        self.q, self.k, self.v = call.q[0].view(kv_heads, group, T, D), call.k[0], call.v[0]
        self.sinks = None if call.sinks is None else call.sinks.float().view(kv_heads, group)
        self.out = torch.empty(T, kv_heads, group, D, dtype=call.q.dtype, device=call.q.device)
        self.plain: tuple[Tensor, Tensor] | None = None

    def rows(self, heads: tuple[int, ...]) -> slice | Tensor:
        """An index of these KV heads: a view where they are all, or one; none that waits for the device."""
        if len(heads) == len(self.k):
            return slice(None)
        return slice(heads[0], heads[0] + 1) if len(heads) == 1 else send(np.array(heads), self.k.device)

    def turn(self, rotation: Rotation, positions: Tensor, below: int) -> None:
        """Rotate q and k of all packed tokens to their positions int64 [T]; `plain` is what they were before."""
        self.plain, at = (self.q, self.k), positions[None]
        self.q = rotation(self.layer, self.q, at, below)
        self.k = rotation(self.layer, self.k[:, None], at, below)[:, 0]

    def projections(self, at: slice) -> Projections:
        """Of the tokens `at`, after `turn`."""
        assert self.plain is not None
        q, k = self.plain
        return Projections(q[:, :, at], k[:, at], self.k[:, at], self.v[:, at])

    def write(self, state: State, at: slice, rows: slice | list[int] | Tensor = slice(None)) -> State:
        """The attention [R, H, n, D] of some rows and of the tokens `at`; returned with the sinks' share taken."""
        if self.sinks is not None:
            state = sink(state, self.sinks[rows])
        self.out[at, rows] = state.out.permute(2, 0, 1, 3).to(self.out.dtype)
        return state

    def write_steps(self, state: State, places: list[int] | slice) -> Tensor:
        """The attention [places x G, H, D] of one token each of several sequences; returns its lse, sinks included."""
        out, lse, (G, H) = state.out, state.lse, self.out.shape[1:3]
        count = len(out) // G
        if self.sinks is not None:
            whole = sink(State(out[:, :, None], lse[..., None]), self.sinks.repeat(count, 1))
            out, lse = whole.out, whole.lse[..., 0]
        self.out[places] = out.reshape(count, G, H, -1).to(self.out.dtype)
        return lse
