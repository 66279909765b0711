from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from kvfoot.core.budget import Budget, Cut
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import POSITION, Band, Method, Plan, require
from kvfoot.core.ranking import Recency
from kvfoot.core.registry import register
from kvfoot.core.roles import HeadGates, check_sparsity, read_roles, write_roles
from kvfoot.methods.heads.shipped import find
from kvfoot.methods.tools import uniform

SINK, WINDOW = 128, 1024
"""What PruLong trains and both methods are evaluated with, where neither an option nor the file says otherwise."""
WHOLE = np.iinfo(np.int32).max


@register(
    "heads",
    paper="2506.17121",
    category="heads",
    stores="everything in full heads, sinks + window in streaming heads",
    reads="all stored",
)
@dataclass(frozen=True)
class Heads(Method):
    """Static roles per KV head: full heads keep everything, streaming heads hold sinks and a window.

    file: the path of a heads file (kvfoot train prulong or duo), of DuoAttention's TSV of gates or PruLong's of 0/1.
    roles, instead of a file: 0 or 1 per KV head, layers between slashes (10/01); or random, a control: as many random
    heads as `sparsity` says, by `seed`; or streaming: no full head at all. Spelt out beside a file, as records have
    them, they are what counts, and the file is not read.
    sparsity: share of streaming heads, exactly (default: the file's own; else gates of one half and more are full).
    sink, window: default the file's own, else 128 and 1024. A streaming head is cut to them after every chunk and every
    token, so a chunk sees all of itself and sinks + window of what came before: the mask of the papers' releases.
    exact: every token sees sinks, `window` tokens before it and itself, inside a chunk too: the answer does not depend
    on the chunk. What is stored is the same.
    """

    file: str = ""
    roles: str = ""
    sparsity: float | None = None
    sink: int | None = None
    window: int | None = None
    exact: bool = False
    seed: int = 0
    budgeted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = self.name
        require(
            not self.file or self.roles not in ("random", "streaming"),
            f"{name}: file and roles={self.roles} exclude each other",
        )
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
        require(
            self.roles != "random" or self.sparsity is not None,
            f"{name}: roles=random needs sparsity, the share of streaming heads",
        )
        require(
            bool(self.file) or self.roles in ("", "random") or self.sparsity is None,
            f"{name}: sparsity goes with a file or with roles=random: roles={self.roles} says which heads are full",
        )
        for option in ("sink", "window"):
            value = getattr(self, option)
            require(value is None or value >= 0, f"{name}: {option}={value} is negative")
        if self.gates is not None:
            self.gates.full(self._asked)
        require(self.protected > 0, f"{name}: a streaming head needs sink + window of at least 1")

    @cached_property
    def gates(self) -> HeadGates | None:
        """What the file or the option holds; None where the roles follow from the model's shape."""
        if self.roles not in ("", "random", "streaming"):
            return HeadGates(read_roles(self.roles), "mask")
        return find(self.file) if self.file else None

    @property
    def _asked(self) -> float | None:
        """The sparsity that the gates are rounded to; roles that are spelt out have one."""
        return None if self.roles else self.sparsity

    @property
    def kept(self) -> tuple[int, int]:
        """(sinks, window) of a streaming head."""
        own = (None, None) if self.gates is None else (self.gates.sink, self.gates.window)
        return _first(self.sink, own[0], SINK), _first(self.window, own[1], WINDOW)

    @property
    def protected(self) -> int:
        return sum(self.kept)

    def full(self, geometry: Geometry) -> np.ndarray:
        """bool [layers, kv_heads]: full heads. Raises UsageError for gates of another model, or none."""
        require(
            bool(self.file or self.roles), f"{self.name} needs file=PATH of a heads file, or roles=10/01 (or random)"
        )
        if self.gates is not None:
            self.gates.check(geometry, f"roles={self.roles}" if self.roles else f"file {self.file}")
            return self.gates.full(self._asked)
        shape = (geometry.layers, geometry.kv_heads)
        if self.sparsity is None:
            return np.zeros(shape, bool)
        key = self.seed * 1_000_003 + torch.arange(geometry.rows)
        gates = HeadGates(uniform(key).view(shape).numpy(), "alpha")
        return gates.full(self.sparsity)

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        plan = super().prepare(geometry, prompt, chunk, budget)
        full = self.full(geometry)
        if full.all():
            return plan
        cut = Cut("all", np.where(full, WHOLE, self.protected).astype(np.int32))
        band = Band(self.kept[0], self.kept[1] + 1, ~full) if self.exact else None
        return Plan(tuple(replace(part, cut=cut) for part in plan.passes), cut, (POSITION,), band)

    @property
    def ranking(self) -> Recency:
        return Recency(self.kept[0])

    def options(self) -> dict[str, Any]:
        """With sinks and window as they are used, and the roles that a file's gates became: a record needs no file."""
        given = {option.name: getattr(self, option.name) for option in fields(self)}
        if self.gates is not None:
            given["roles"] = write_roles(self.gates.full(self._asked))
        if self.file or self.roles:
            given |= {"sink": self.kept[0], "window": self.kept[1]}
        return given


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
