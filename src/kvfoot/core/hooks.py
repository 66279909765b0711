"""The method contract: a method says what it needs and what survives; the engine computes and frees (decision D5).

Shapes: R rows of one layer (KV heads of one or more sequences), m entries in scope, H query heads per KV head,
D dimensions per head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Flag, auto
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kvfoot.core.budget import Budget, Cut, PromptPass
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.ranking import Ranking
from kvfoot.core.storage import PLAIN, Storage


class Needs(Flag):
    """What the engine has to obtain before it asks a method."""

    NOTHING = 0
    WINDOW_SCORES = auto()
    """Attention mass from the pass's last `observers` queries, softmax over the entries in scope."""
    COLUMN_SCORES = auto()
    """Attention mass from all of the pass's queries, softmax over everything stored."""
    KEYS = auto()
    """The keys of the entries in scope, after RoPE."""
    PRE_ROPE = auto()
    """Keys are stored before RoPE and rotated by their rank in the row at every pass: positions are renumbered."""
    PROJECTIONS = auto()
    """What the layer makes of the pass's own tokens, before RoPE and after it (`Projections`), in every pass."""


@dataclass(frozen=True)
class Projections:
    """Of a pass's n tokens that are to be stored, in all G KV heads of a layer.

    q: [G, H, n, D] and k: [G, n, D] before RoPE; turned: [G, n, D], k after it; v: [G, n, D].
    """

    q: Tensor
    k: Tensor
    turned: Tensor
    v: Tensor


@dataclass(frozen=True)
class Plane:
    """Values that travel with an entry: accumulated scores, gates, positions. `dtype` [width] per entry."""

    name: str
    width: int = 1
    dtype: torch.dtype = torch.float32


POSITION = Plane("position", dtype=torch.int32)
"""Absolute positions; every sequence that evicts has this plane."""


ABSENT = 1 << 40
"""The position of an entry that a row does not have (see Seen)."""


@dataclass(frozen=True)
class Band:
    """What queries of some rows see inside a pass: positions [0, sink) and the last `window`, their own included.

    rows: bool [layers, kv_heads], the rows meant; all others see every entry that is stored.
    """

    sink: int
    window: int
    rows: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What a method promises for one prompt: checked against the pool after the run (decision D10)."""

    passes: tuple[PromptPass, ...]
    later: Cut | None = None
    planes: tuple[Plane, ...] = ()
    band: Band | None = None
    reads: int | None = None
    """Entries per row that a decode step reads (core/reading.py); None: all that are stored."""
    storage: Storage = PLAIN

    def spread(self, geometry: Geometry) -> "Plan":
        """A plan for the open layers as one for all layers."""
        if not any(geometry.windows):
            return self
        passes = tuple(replace(p, cut=p.cut and p.cut.spread(geometry)) for p in self.passes)
        band = self.band
        if band is not None:
            rows = np.zeros((geometry.layers, geometry.kv_heads), bool)
            rows[geometry.open_layers] = band.rows
            band = replace(band, rows=rows)
        return replace(self, passes=passes, later=self.later and self.later.spread(geometry), band=band)

    @property
    def evicts(self) -> bool:
        return self.later is not None or any(p.cut is not None for p in self.passes)

    @property
    def ragged(self) -> bool:
        """Promised are sums over a layer's heads, not rows (decision 0006)."""
        return any(p.cut is not None and p.cut.ragged for p in self.passes)


@dataclass
class Seen:
    """What a method sees of R rows of one layer after a pass; every row has m entries in scope, the pass's included.

    heads: int64 [R], KV head of each row. positions: int64 [R, m], absolute. start: position of the pass's first token.
    new: tokens in the pass (the last `new` entries in scope are theirs). keep: entries in scope that survive.
    patched: the observers are tokens that are not stored, so that none of the entries in scope is one of them.
    left: tokens of the prompt that are still to come. fresh: where `observe` is called and `needs` asks for it.
    sequences: whose rows these are, R / sequences of each, one after the other; more than one in a replayed step only.

    In a replayed step rows differ in length: m is the most that one may have, and what a row does not have stands last,
    at position ABSENT, without scores; its priority does not count. `start` and `keep` are int64 [R, 1] there.
    scores: fp32 [R, H, m] and keys: [R, m, D] as `needs` asks, else None. planes: name -> [R, m, width].
    """

    layer: int
    heads: Tensor
    positions: Tensor
    start: int
    new: int
    keep: int
    scores: Tensor | None = None
    planes: dict[str, Tensor] = field(default_factory=dict)
    keys: Tensor | None = None
    patched: bool = False
    left: int = 0
    fresh: Projections | None = None
    sequences: int = 1

    def rows(self, index: slice | list[int], keep: int) -> "Seen":
        """Some of the rows, of which `keep` entries survive."""
        return replace(
            self,
            heads=self.heads[index],
            positions=self.positions[index],
            keep=keep,
            scores=None if self.scores is None else self.scores[index],
            planes={name: value[index] for name, value in self.planes.items()},
            keys=None if self.keys is None else self.keys[index],
        )

    @property
    def size(self) -> int:
        return int(self.positions.shape[1])

    @property
    def last(self) -> int:
        """Position of the newest token."""
        return self.start + self.new - 1


@dataclass(frozen=True)
class Keep:
    """Survivors of R rows: `kept` int64 [R, keep], ascending entries; or, where one entry goes, `lost` int64 [R]."""

    kept: Tensor | None = None
    lost: Tensor | None = None

    @classmethod
    def top(cls, priority: Tensor, keep: int) -> "Keep":
        """The `keep` entries of highest priority, fp32 [R, m]; +inf is never taken unless there are too many."""
        if priority.shape[1] - keep == 1:
            return cls(lost=priority.argmin(1))
        return cls(kept=priority.topk(keep, dim=1, sorted=False).indices.sort(1).values)


@dataclass(frozen=True)
class Method:
    """Base of all methods: a frozen dataclass of options with their published defaults.

    Class variables, set by the method or by `@register`:
    name, paper (arXiv id), category, stores, reads: one line each for the registry.
    needs; total, growing (what keep counts, see Budget.resolve); budgeted (takes keep or budget).
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    category: ClassVar[str] = ""
    stores: ClassVar[str] = ""
    reads: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs.NOTHING
    total: ClassVar[bool] = False
    growing: ClassVar[bool] = False
    budgeted: ClassVar[bool] = True

    @property
    def protected(self) -> int:
        """Entries that a cut never takes: sinks + window."""
        return int(getattr(self, "sink", 0)) + int(getattr(self, "window", 0))

    @property
    def observers(self) -> int:
        """Queries of a pass whose attention is scored (WINDOW_SCORES)."""
        return int(getattr(self, "window", 0)) if Needs.WINDOW_SCORES in self.needs else 0

    def fitted(self, geometry: Geometry) -> "Method":
        """The method for one model, options that follow from it filled in. Raises UsageError where there are none."""
        return self

    def planes(self, geometry: Geometry) -> tuple[Plane, ...]:
        """Values that travel with every entry."""
        return ()

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        """The plan for a prompt of `prompt` tokens. Raises UsageError where the budget does not suit the method."""
        if self.budgeted and budget.unlimited:
            raise UsageError(
                f"{self.name} needs a size: give keep (fraction of the prompt) or budget (entries per row)"
            )
        if not self.budgeted and not budget.unlimited:
            raise UsageError(f"{self.name} takes neither keep nor budget: it keeps what its own definition says")
        passes, later = budget.resolve(
            prompt,
            chunk,
            geometry,
            floor=self.protected,
            observers=self.observers,
            total=self.total,
            growing=self.growing,
        )
        if getattr(self, "patch", False):
            if budget.evict != "chunk":
                raise UsageError(f"{self.name}: patch=true shows the prompt's end to every chunk: it needs evict=chunk")
            ends = (prompt - self.observers, prompt)
            passes = tuple(replace(part, patch=ends) for part in passes[:-1]) + passes[-1:]
        plan = Plan(passes, later)
        return Plan(passes, later, (POSITION, *self.planes(geometry))) if plan.evicts else plan

    @property
    def ranking(self) -> Ranking | None:
        """What `observe` and `priority` are, if it is one of core/ranking.py: replayed steps then do not call them.

        A method that overrides one of the two is asked, whatever it has here.
        """
        return None

    def observe(self, seen: Seen) -> dict[str, Tensor]:
        """New values of the planes, after every pass: name -> fp32 [R, m, width] with m = all entries."""
        return {} if self.ranking is None else self.ranking.observe(seen)

    def priority(self, seen: Seen) -> Tensor:
        """What survives first, fp32 [R, m]: the greatest numbers, +inf for what is protected.

        A method that overrides `keep` instead decodes without a CUDA graph.
        """
        if self.ranking is None:
            raise TypeError(f"{self.name} evicts nothing")
        return self.ranking.priority(seen)

    def keep(self, seen: Seen) -> Keep:
        """Which entries in scope survive: those of highest priority. Called only where `seen.keep < m`."""
        return Keep.top(self.priority(seen), seen.keep)

    def allocate(self, blocks: Sequence[Seen]) -> list[int]:
        """Entries that each row of a layer keeps where a cut is ragged: the blocks' rows in order.

        A block's `keep` is the layer's mean; the answer's sum has to be mean x rows. May wait for the device once.
        """
        raise TypeError(f"{self.name} gives all heads of a layer the same")

    def options(self) -> dict[str, Any]:
        """Options as given, for the record."""
        return dict(self.__dict__)


def declared(method: Method) -> Ranking | None:
    """The ranking of a method that computes neither planes nor priorities itself."""
    own = type(method)
    return method.ranking if own.observe is Method.observe and own.priority is Method.priority else None


def require(condition: bool, message: str) -> None:
    """UsageError(message) unless the condition holds: for options in `__post_init__`."""
    if not condition:
        raise UsageError(message)
