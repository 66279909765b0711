"""A decode step that lives on the device: the model unmodified, everything it reads and writes in buffers that stay.

    Ledger.prepare (host: pages, lengths, slots) -> words to the device -> replay: model -> per layer: store, attend,
        overwrite -> sample -> tokens stay on the device and are copied to the host -> Ledger.settle, meanwhile

Recorded once per kind of step, replayed with other contents: nothing but the buffers says what a step does.
"""

from collections.abc import Sequence as Many
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.naive_layer import Target
from kvfoot.attention.state import State, sink
from kvfoot.cache.kv import KVCache
from kvfoot.cache.memory import current
from kvfoot.core.errors import NotFinite, UsageError
from kvfoot.core.hooks import POSITION, Needs, declared
from kvfoot.core.ranking import Mass
from kvfoot.core.reading import Reader
from kvfoot.engine.buffers import Buffers
from kvfoot.engine.graph import Record, Recorder
from kvfoot.engine.ledger import WHOLE, Ledger, limits
from kvfoot.engine.listed import Lists
from kvfoot.engine.oldest import sinks
from kvfoot.engine.overwrite import Scope, flat, outweigh, overwrite, planes_of
from kvfoot.engine.ranks import Ranks
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.step import blame
from kvfoot.models.bridge import Call, PassCache
from kvfoot.models.fusion import Fusion, settled, untouched

SCORED = Needs.WINDOW_SCORES | Needs.COLUMN_SCORES
QUIET = "quiet"


class Resident:
    """Decode steps of up to `size` sequences of one method. `attach`, any number of `step` and `tokens`, `detach`."""

    def __init__(
        self,
        model: Any,
        backend: Backend,
        cache: KVCache,
        sequences: Many[Sequence],
        size: int,
        room: int,
        sampling: Sampling,
        record: Record,
        fusion: Fusion | None = None,
    ):
        """sequences: what the shapes follow from. room: tokens that each of them may still take. fusion: None: every
        operation around attention is the model's own.
        """
        self.model, self.backend, self.cache, self.sampling, self.record = model, backend, cache, sampling, record
        self.fusion = fusion
        self.method, self.plan = sequences[0].method, sequences[0].plan
        g, self.limits = cache.geometry, np.stack([limits(s) for s in sequences])
        furthest = np.minimum(np.stack([s.rows.lens for s in sequences]) + room, self.limits) + 1
        self.entries = furthest.max((0, 2))
        widths = [int(-(-n // cache.pool.page_size)) for n in self.entries]
        self.buffers = Buffers(cache.pool, g, size, widths)
        self.planes = [plane.name for plane in self.plan.planes if plane is not POSITION]
        self.known = sinks(self.method, g) >= 0
        self.scopes = [self._scope(layer) for layer in range(g.layers)]
        ranking = declared(self.method)
        self.ranking = ranking if isinstance(ranking, Mass) and self._serves(ranking) else None
        self.lists = Lists(self.buffers, cache, backend, self.method) if isinstance(self.method, Reader) else None
        self.ranks: Ranks | None = None
        if Needs.PRE_ROPE in self.method.needs:
            seen = self._placed(sequences, room) + 1
            with torch.inference_mode(), current(self.buffers.device):
                self.ranks = Ranks(model, cache, self.buffers, backend, seen, bool(self.plan.planes))
        self.graphs: dict[str, Recorder] = {}
        self.ledger: Ledger | None = None
        self.checks: list[Tensor] = []
        self.position = self.fences = self.buffers.words["position"]
        self.plans: Any = None
        self.kind = QUIET

    def _placed(self, sequences: Many[Sequence], room: int) -> int:
        """The last position that a key of these is turned to; 0 where only ranks are, whatever the text's length."""
        windowed = any(window is not None for window in self.cache.geometry.windows)
        return max(s.rows.seen for s in sequences) + room if windowed else 0

    def _serves(self, ranking: Mass) -> bool:
        """One entry for all rows of a layer is found among rows that hold the same entries."""
        return ranking.plane is not None or bool((self.limits == self.limits[..., :1]).all())

    def _taken(self, layer: int) -> np.ndarray:
        """bool [KV heads]: rows that are full one day."""
        found: np.ndarray = self.limits[0, layer] < WHOLE
        return found

    def _scope(self, layer: int) -> Scope | None:
        """None where the device has nothing to find."""
        geometry, device = self.cache.geometry, self.cache.pool.device
        taken = self._taken(layer)
        if self.known[layer] or not taken.any():
            return None
        heads = np.tile(np.arange(geometry.kv_heads), self.buffers.size)
        rows = np.flatnonzero(np.tile(taken, self.buffers.size))
        entries = int(self.limits[:, layer, taken].max()) + 1
        size = self.cache.pool.page_size
        entries = min(entries, self.buffers.widths[layer] * size)
        return Scope(
            None if taken.all() else torch.from_numpy(rows).to(device),
            torch.from_numpy(heads[rows]).to(device),
            torch.arange(entries, device=device),
            torch.arange(size, device=device),
        )

    def holds(self, sequences: Many[Sequence], room: int) -> bool:
        """Whether these, with `room` more tokens each, have the shapes that this was made for."""
        most = np.stack([limits(s) for s in sequences])
        furthest = np.minimum(np.stack([s.rows.lens for s in sequences]) + room, most) + 1
        small = (furthest.max((0, 2)) <= np.array(self.buffers.widths) * self.cache.pool.page_size).all()
        same = ((most < WHOLE) == (self.limits[:1] < WHOLE)).all()
        scoped = all(
            s is None or most[:, i][most[:, i] < WHOLE].max() < len(s.entry) for i, s in enumerate(self.scopes)
        )
        fits = self.lists is None or self.lists.standing.fits(sequences)
        if self.ranks is not None:
            fits = fits and self._placed(sequences, room) < self.ranks.most
        return bool(small and same and scoped and fits and len(sequences) <= self.buffers.size)

    def attach(self, sequences: Many[Sequence]) -> None:
        """Take over the sequences' rows until `detach`. Raises PoolExhausted, before anything has changed."""
        ledger = Ledger(self.cache, self.buffers, sequences)
        if self.lists is not None:
            try:
                with current(self.buffers.device):
                    self.lists.attach(sequences)
            except BaseException:
                ledger.close()
                raise
        self.ledger = ledger
        self.buffers.feed([s.tokens[-1] for s in sequences] + [0] * (self.buffers.size - len(sequences)))

    def detach(self) -> None:
        """Give the rows back to the cache, and readers their states."""
        if self.ledger is None:
            return
        if self.lists is not None:
            self.lists.detach()
        self.ledger.close()
        self.ledger = None

    def step(self, kind: str = QUIET) -> None:
        """Start one token of every sequence; the host goes on at once. Raises PoolExhausted."""
        assert self.ledger is not None
        self.kind = kind
        with current(self.buffers.device):
            if kind not in self.graphs:
                self._capture(kind)
            self.ledger.prepare()
            self.graphs[kind].replay()
            self.buffers.fetch()
        self.ledger.settle()

    def tokens(self) -> list[int]:
        """What the step chose, in order: the one wait for the device. Raises NotFinite."""
        assert self.ledger is not None
        tokens, finite, fired = self.buffers.answered()
        if not finite.all():
            raise NotFinite(blame(finite[:-1].tolist()))
        if self.lists is not None:
            self.lists.account(self.ledger, self.kind, fired)
        return tokens[: len(self.ledger.sequences)]

    def _capture(self, kind: str) -> None:
        """Record a kind of step, on words under which its warming runs change nothing that is anybody's."""
        assert self.ledger is not None
        if self.lists is not None:
            self.lists.steps[kind] = next(s.steps for s in self.ledger.sequences if not s.done)
        self.ledger.idle()
        tokens = self.buffers.tokens.clone()
        states = None if self.lists is None else self.lists.standing.saved()
        graph = self.record()
        graph.capture(lambda: self.run(kind))
        self.graphs[kind] = graph
        self.buffers.tokens.copy_(tokens)
        if states is not None and self.lists is not None:
            self.lists.standing.restore(states)

    @torch.inference_mode()
    def run(self, kind: str) -> None:
        """The step itself, from buffers to buffers."""
        b, pool = self.buffers, self.cache.pool
        self.checks, self.kind = [], kind
        self.plans = self.backend.planned(b.words["lens"], pool.head_dim, pool.dtype)
        if self.lists is not None:
            self.lists.begin(kind)
        positions = at = b.words["position"][None]
        if self.ranks is not None:
            at = torch.zeros_like(positions)  # no rotation: `attend` turns q and k
        self.position = b.words["position"].repeat_interleave(self.cache.geometry.kv_heads)[:, None]
        if self.ranking is not None:
            self.fences = cast(Tensor, self.ranking.fence(b.words["counts"], self.position[:, 0]))
        with nullcontext() if self.fusion is None else self.fusion.applied():
            output = self.model(
                input_ids=b.tokens,
                position_ids=at,
                past_key_values=PassCache(self.attend, 0),
                use_cache=True,
                logits_to_keep=0,
            )
        logits = output.logits[0].float()
        b.tokens.copy_(self.sampling.choose(logits, b.words["stream"], positions[0] + 1)[None])
        if self.lists is not None:
            self.lists.end()
        sums = torch.stack(self.checks).flatten(1).sum(1, dtype=torch.float32)
        finite = torch.cat([torch.isfinite(sums), torch.isfinite(logits).all()[None]])
        b.answer.copy_(torch.cat([b.tokens[0], finite.long(), b.fired.flatten()]))
        self.checks = []

    def attend(self, call: Call) -> Tensor:
        """One layer: q [1, heads, B, D], k and v [1, kv_heads, B, D] -> attention output [1, B, heads, D]."""
        cache, b, layer = self.cache, self.buffers, call.layer
        pool, windowed = cache.pool, cache.geometry.window(layer) is not None
        if call.window != cache.geometry.window(layer):
            raise UsageError(
                f"layer {layer} asks for a window of {call.window} tokens, the config for "
                f"{cache.geometry.window(layer)}"
            )
        slots, lens = b.words["slots"][layer], b.words["lens"][layer]
        q = self._store(call, slots, bool(self.plan.planes) and not windowed)
        plan = None if self.plans is None else self.plans.layer(layer)
        scope = self.scopes[layer]
        ranking = None if scope is None or scope.rows is not None else self.ranking
        weights = None
        if self.lists is not None and not windowed:
            state = self.lists.attend(layer, self.kind, q, call.scale, plan)
        elif self.ranks is not None and not windowed:
            state = self.ranks.attend(layer, q, call.scale, plan)
        else:
            width = 0
            if scope is not None and self.method.needs & SCORED:  # of whole rows beside those that are cut too
                width = len(scope.entry) if scope.rows is None else b.widths[layer] * pool.page_size
            state, weights = self.backend.paged(
                q, pool.k, pool.v, b.tables[layer], lens, call.scale, plan=plan, width=width, logits=ranking is not None
            )
        state, own = _sunk(state, call.sinks), state
        if self.known[layer] and self._taken(layer).any():
            self.backend.move(planes_of(pool), slots, b.words["goal"][layer])
        elif ranking is not None and weights is not None:
            norm = state.lse if Needs.COLUMN_SCORES in self.method.needs else own.lse
            outweigh(self.backend, pool, b, ranking, layer, self.fences[layer], weights, norm)
        elif scope is not None:
            if weights is not None and call.sinks is not None and Needs.COLUMN_SCORES in self.method.needs:
                weights = weights * (own.lse - state.lse).exp()[..., None].nan_to_num(0.0)
            overwrite(self.backend, pool, b, self.method, layer, scope, self.position, weights, self.planes)
        out = state.out.to(q.dtype).reshape(1, b.size, -1, q.shape[2])
        self.checks.append(out)
        return out

    def _store(self, call: Call, slots: Tensor, placed: bool) -> Tensor:
        """The new entries into their slots, their positions too if `placed`. Returns q by rows, [R, H, D]."""
        pool, b, G = self.cache.pool, self.buffers, self.cache.geometry.kv_heads
        if self.fusion is not None and self.ranks is None and call.k.dtype == call.v.dtype == pool.dtype:
            (q, k, turn), v = untouched(call.q, call.k), call.v
            target = Target(pool.k, pool.v, pool.planes[POSITION.name] if placed else None)
            return self.fusion.kernels.store(q, k, v, turn, slots, b.words["position"], target)
        q, k = settled(call.q), settled(call.k)
        if self.ranks is not None and self.cache.geometry.window(call.layer) is not None:
            q, k = (self.ranks.placed(call.layer, x) for x in (q, k))
        k, v = (_rows(settled(x)).to(pool.dtype) for x in (k, call.v))
        flat(pool.k).index_copy_(0, slots, k)
        flat(pool.v).index_copy_(0, slots, v)
        if placed:
            flat(pool.planes[POSITION.name]).index_copy_(0, slots, self.position.int())
        return q[0].view(G, -1, *q.shape[2:]).permute(2, 0, 1, 3).flatten(0, 1)


def _rows(x: Tensor) -> Tensor:
    """[1, G, B, D] by rows [B x G, D]."""
    return x[0].transpose(0, 1).flatten(0, 1)


def _sunk(state: State, sinks: Tensor | None) -> State:
    """The state with the sinks' share taken; sinks: a logit per query head of the model."""
    if sinks is None:
        return state
    R, H = state.lse.shape
    s_RH = sinks.float().view(-1, H).repeat(R * H // len(sinks), 1)
    whole = sink(State(state.out[:, :, None], state.lse[..., None]), s_RH)
    return State(whole.out[:, :, 0], whole.lse[..., 0])
