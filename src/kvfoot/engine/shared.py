"""One prefill for many methods that evict once, after the prompt: what they need is recorded, then each gets a fork.

Until its only cut such a method has stored everything and attended to everything: so have all of them together. The
shared pass carries the union of their planes and remembers the last queries of every layer; a fork shares its pages,
and `keep` chooses among them as it would have inside the pass. Equal, bit for bit, to a run of the method alone.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from kvfoot.core.budget import Cut
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import POSITION, Keep, Method, Needs, Plan, Plane, Seen
from kvfoot.core.reading import Reader
from kvfoot.engine.look import scan
from kvfoot.engine.runner import Event, Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.span import Span
from kvfoot.engine.step import Step
from kvfoot.models.bridge import Call

SHAREABLE = Needs.WINDOW_SCORES | Needs.COLUMN_SCORES | Needs.KEYS


@dataclass(frozen=True)
class Recorder(Method):
    """Evicts nothing; observes what every member observes."""

    members: tuple[Method, ...] = ()
    owns: tuple[tuple[str, ...], ...] = ()

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs.COLUMN_SCORES if any(Needs.COLUMN_SCORES in m.needs for m in self.members) else Needs.NOTHING

    def observe(self, seen: Seen) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for method, names in zip(self.members, self.owns, strict=True):
            own = {name: seen.planes[name] for name in (POSITION.name, *names)}
            found |= method.observe(replace(seen, planes=own))
        return found


@dataclass(frozen=True)
class Member:
    """A method with its plan for one length of prompt."""

    method: Method
    plan: Plan

    @property
    def shareable(self) -> bool:
        """Whether nothing is cut before the prompt's end, and a shared pass records all that is needed."""
        *early, last = self.plan.passes
        once = all(part.cut is None for part in early) and (last.cut is None or last.cut.scope == "all")
        reads_all = self.plan.band is None and not isinstance(self.method, Reader)
        return once and reads_all and not self.method.needs & ~SHAREABLE

    @property
    def passes(self) -> tuple[tuple[int, int], ...]:
        return tuple((part.start, part.stop) for part in self.plan.passes)


@dataclass
class Base:
    """A prompt that was read once. queries: per layer the last ones [kv_heads, group, w, D] and the scale."""

    sequence: Sequence
    logits: Tensor
    seconds: float
    queries: dict[int, tuple[Tensor, float]] = field(default_factory=dict)


def groups(members: Many[Member]) -> list[list[int]]:
    """Indices of members that may share a pass: equal chunks, no two methods with planes of one name."""
    found: list[list[int]] = []
    for i, member in enumerate(members):
        names = {plane.name for plane in member.plan.planes[1:]}
        for group in found:
            others = [members[j] for j in group]
            clash = any(names & {p.name for p in o.plan.planes[1:]} and o.method != member.method for o in others)
            if member.shareable and others[0].shareable and member.passes == others[0].passes and not clash:
                group.append(i)
                break
        else:
            found.append([i])
    return found


class Shared:
    """A group of members on one runner. The runner's pool has to have `plan`'s planes."""

    def __init__(self, members: Many[Member], geometry: Geometry):
        first = members[0].plan
        planes: dict[str, Plane] = {}
        owners: dict[Method, tuple[str, ...]] = {}
        for member in members:
            own = {plane.name: plane for plane in member.plan.planes[1:]}
            planes |= own
            if own:
                owners[member.method] = tuple(own)
        needed = (POSITION, *planes.values()) if any(m.plan.planes for m in members) else ()
        self.geometry = geometry
        self.method = Recorder(tuple(owners), tuple(owners.values()))
        self.plan = Plan(tuple(replace(part, cut=None) for part in first.passes), None, needed)
        self.window = max(m.method.observers for m in members)

    def read(self, runner: Runner, tokens: list[int], index: int = 0) -> Base:
        """The whole prompt, nothing evicted."""
        began = perf_counter()
        sequence = runner.open(tokens, self.method, self.plan, Sampling(), index)
        base = Base(sequence, torch.empty(0), 0.0)
        for part in self.plan.passes:
            last = part.stop == len(tokens)
            step = _Listening(runner, [Span(sequence, 0, part.stop - part.start, None)], self.window if last else 0)
            base.logits = step.forward(runner.model, tokens[part.start : part.stop])[0]
            base.queries = step.heard
            runner.tell(Event("prefill", index, part.stop, sequence.prompt))
        runner.cache.settle()
        sequence.verify()
        sequence.held = sequence.rows.lens.copy()
        base.seconds = perf_counter() - began
        return base

    @torch.inference_mode()
    def fork(self, runner: Runner, base: Base, member: Member, index: int = 0) -> Sequence:
        """The prompt as `member` alone would have kept it: its rows, its trace, its promise."""
        cache, origin = runner.cache, base.sequence
        sequence = runner.open(origin.tokens, member.method, member.plan, Sampling(), index)
        cache.release(sequence.rows)
        sequence.rows = cache.fork(origin.rows)
        due = None
        for part, done in zip(member.plan.passes, origin.trace.passes, strict=True):
            due = None if part.cut is None else part.cut.due(done.before, done.n)
            span = Span(sequence, 0, done.n, part.cut, due)
            sequence.trace.passes.append(replace(done, scan=scan(span, done.before)))
            sequence.promise(done.n, part.cut)
        if due is not None and part.cut is not None:
            for layer in range(self.geometry.layers):
                if due[layer].any():
                    self._cut(runner, base, sequence, layer, part.cut, due[layer])
        cache.settle()
        sequence.verify()
        sequence.freeze()
        sequence.held = sequence.rows.lens.copy()
        return sequence

    def _cut(self, runner: Runner, base: Base, sequence: Sequence, layer: int, cut: Cut, due: Any) -> None:
        """The member's choice in one layer, among all entries of the prompt."""
        method, rows = sequence.method, sequence.rows
        parts: list[tuple[tuple[int, ...], Seen]] = []
        for heads, size in runner.cache.blocks(rows, layer, cut):
            if due[heads[0]]:
                keep = int(cut.counts[layer, heads[0]])
                parts.append((heads, self._seen(runner, base, sequence, layer, heads, size, keep, cut.ragged)))
        if not cut.ragged:
            for heads, seen in parts:
                self._commit(runner, sequence, layer, heads, method.keep(seen))
            return
        counts = iter(method.allocate([seen for _, seen in parts]))
        shares = [(next(counts), heads, seen, row) for heads, seen in parts for row in range(len(heads))]
        for count in sorted({share[0] for share in shares}):
            for heads, seen in parts:
                index = [row for c, _, s, row in shares if c == count and s is seen]
                if index and count < seen.size:
                    some = seen.rows(index, count)
                    self._commit(runner, sequence, layer, tuple(heads[row] for row in index), method.keep(some))

    def _seen(
        self, runner: Runner, base: Base, sequence: Sequence, layer: int, heads: tuple[int, ...], size: int, keep: int,
        ragged: bool,
    ) -> Seen:  # fmt: skip
        cache, rows, method = runner.cache, sequence.rows, sequence.method
        last = base.sequence.trace.passes[-1]
        positions = cache.positions(rows, layer, heads)
        planes = {POSITION.name: positions[..., None]}
        planes |= {p.name: cache.plane(rows, layer, heads, p.name) for p in sequence.plan.planes[1:]}
        seen = Seen(
            layer, torch.tensor(heads, device=positions.device), positions, last.seen, last.n, keep, planes=planes
        )
        if method.needs & (Needs.WINDOW_SCORES | Needs.KEYS):
            keys, _ = cache.history(rows, layer, heads)
            if Needs.WINDOW_SCORES in method.needs:
                queries, scale = base.queries[layer]
                w = min(last.n, method.observers)
                q_RHwD = queries[list(heads), :, queries.shape[2] - w :]
                seen.scores = runner.backend.window_scores(q_RHwD, keys, scale)
            if Needs.KEYS in method.needs:
                seen.keys = keys.clone() if ragged else keys
        return seen

    def _commit(self, runner: Runner, sequence: Sequence, layer: int, heads: tuple[int, ...], keep: Keep) -> None:
        cache, rows = runner.cache, sequence.rows
        keys, values = cache.history(rows, layer, heads)
        old = {POSITION.name: cache.positions(rows, layer, heads)[..., None]}
        old |= {p.name: cache.plane(rows, layer, heads, p.name) for p in sequence.plan.planes[1:]}
        none = {name: value[:, :0] for name, value in old.items()}
        cache.commit(rows, layer, heads, keys, values, none, old, None, keep)


class _Listening(Step):
    """A pass over one sequence that remembers the last `window` queries of every layer."""

    def __init__(self, runner: Runner, spans: Many[Span], window: int):
        super().__init__(runner.cache, runner.backend, spans)
        self.window, self.heard = window, dict[int, tuple[Tensor, float]]()

    def attend(self, call: Call) -> Tensor:
        if self.window:
            geometry = self.cache.geometry
            _, _, n, D = call.q.shape
            w = min(self.window, n)
            q = call.q[0, :, n - w :].reshape(geometry.kv_heads, geometry.group, w, D)
            self.heard[call.layer] = q.clone(), call.scale
        return super().attend(call)
