"""What may be kept, and the one place where a ratio becomes integers (decision D7)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np

from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry

Evict = Literal["post", "chunk"]


@dataclass(frozen=True)
class Cut:
    """An upper bound on what a row holds after a pass.

    scope "new": of the pass's own entries keep at most `counts`; earlier survivors stay.
    scope "all": of everything stored keep at most `counts`.
    counts: int32 [layers, kv_heads].
    ragged: the counts of a layer, equal, are a mean: their sum is kept, and the method divides it among the heads.
    """

    scope: Literal["new", "all"]
    counts: np.ndarray
    ragged: bool = False

    def due(self, before: np.ndarray, new: int) -> np.ndarray:
        """Whether rows lose entries in a pass of `new` tokens over `before` stored ones; both [layers, kv_heads]."""
        scope = before + new if self.scope == "all" else np.full_like(before, new)
        if self.ragged:
            over = self.counts.sum(1, keepdims=True) < scope.sum(1, keepdims=True)
            return np.broadcast_to(over, scope.shape)
        return self.counts < scope

    def kept(self, before: np.ndarray, new: int) -> np.ndarray:
        """Entries a row holds after such a pass; of a ragged cut only the sums over a layer are meant."""
        if self.scope == "new":
            return before + np.minimum(self.counts, new)
        return np.where(self.due(before, new), self.counts, before + new)

    def spares(self, layer: int) -> np.ndarray:
        """bool [kv_heads]: rows of the layer that it never takes anything from."""
        spared: np.ndarray = self.counts[layer] == np.iinfo(np.int32).max
        return spared

    def freeze(self, held: np.ndarray) -> "Cut":
        """A ragged cut as it holds from now on: each row at what it `held`, where its layer's sum is used up."""
        full = held.sum(1, keepdims=True) >= self.counts.sum(1, keepdims=True)
        return Cut(self.scope, np.where(full, held, self.counts).astype(np.int32))

    def spread(self, geometry: Geometry) -> "Cut":
        """A cut of the open layers alone as one of all layers; what a window layer keeps is no method's business."""
        counts = np.full((geometry.layers, geometry.kv_heads), np.iinfo(np.int32).max, np.int32)
        counts[geometry.open_layers] = self.counts
        return replace(self, counts=counts)


def held(cut: Cut | None, before: np.ndarray, new: int, geometry: Geometry) -> np.ndarray:
    """Entries per row after a pass of `new` tokens over `before` stored ones, [layers, kv_heads]."""
    after = before + new if cut is None else cut.kept(before, new)
    return geometry.slide(before + new, after)


@dataclass(frozen=True)
class PromptPass:
    """One forward pass over prompt[start:stop), and what is cut after it.

    patch: prompt[patch[0]:patch[1]) is appended to the pass as observers and not stored (arXiv 2506.17121, section 4).
    """

    start: int
    stop: int
    cut: Cut | None = None
    patch: tuple[int, int] | None = None


@dataclass(frozen=True)
class Budget:
    """`keep`: the fraction kept, exact. `tokens`: entries per row, absolute. Neither: everything is kept.

    evict "post" cuts once, after the whole prompt; "chunk" cuts after every chunk of it (arXiv 2506.17121, section 4).
    """

    keep: Fraction | None = None
    tokens: int | None = None
    evict: Evict = "post"

    @classmethod
    def of(cls, keep: float | str | Fraction | None = None, budget: int | None = None, evict: str = "post") -> "Budget":
        """Checked. A float or string is read as the decimal number it is written as: 0.3 is 3/10.

        Raises UsageError: both given, keep outside (0, 1], budget < 1, evict unknown.
        """
        if keep is not None and budget is not None:
            raise UsageError("keep and budget exclude each other: keep is a fraction of the prompt, budget a count")
        if evict not in ("post", "chunk"):
            raise UsageError(f"evict={evict!r}: 'post' (after the whole prompt) or 'chunk' (after every chunk)")
        ratio = None
        if keep is not None:
            try:
                ratio = keep if isinstance(keep, Fraction) else Fraction(str(keep))
            except (ValueError, ZeroDivisionError):
                raise UsageError(f"keep={keep!r} is not a number: give a fraction in (0, 1], such as 0.25") from None
            if not 0 < ratio <= 1:
                raise UsageError(f"keep={keep} is outside (0, 1]: give the fraction of entries to keep, such as 0.25")
        if budget is not None and budget < 1:
            raise UsageError(f"budget={budget}: give at least 1 entry per row")
        return cls(ratio, budget, evict)  # type: ignore[arg-type]

    @property
    def unlimited(self) -> bool:
        return self.keep is None and self.tokens is None

    def resolve(
        self,
        prompt: int,
        chunk: int | None,
        geometry: Geometry,
        *,
        floor: int,
        observers: int,
        total: bool,
        growing: bool = False,
    ) -> tuple[tuple[PromptPass, ...], Cut | None]:
        """Integers for a prompt of `prompt` tokens read in chunks of `chunk` (None: in one pass).

        floor: entries that a cut never takes (sinks + window), at least 1. observers: queries that score in a pass.
        total: the method holds a constant count, `round(keep x prompt)`, from the first cut through decode; otherwise
        `keep` counts each chunk's entries, the counts add up, and what follows the prompt is appended. growing: after
        a chunk it counts all tokens read so far, among whose entries the method chooses anew.
        Returns the prompt's passes and the cut after every later pass. Rounding is half to even on exact fractions.
        Raises UsageError where sinks + window do not fit.
        """
        if chunk is not None and chunk < 1:
            raise UsageError(f"chunk={chunk}: give at least 1 token per chunk")
        if self.unlimited:
            return tuple(PromptPass(a, b) for a, b in split(prompt, chunk, observers)), None
        floor = max(floor, 1)
        full = lambda count: np.full((geometry.layers, geometry.kv_heads), count, np.int32)  # noqa: E731
        if self.tokens is not None or total:
            count = self.tokens if self.tokens is not None else max(round(self.keep * prompt), floor)  # type: ignore[operator]
            if count < floor:
                raise UsageError(f"budget={count} is below sinks + window = {floor}: raise it or shrink the window")
            cut = Cut("all", full(count))
            spans = split(prompt, chunk, observers)
            return tuple(PromptPass(a, b, cut if self.evict == "chunk" or b == prompt else None) for a, b in spans), cut
        assert self.keep is not None
        if self.evict == "post":
            spans = split(prompt, chunk, observers)
            last = Cut("all", full(self._share(prompt, floor)))
            return tuple(PromptPass(a, b, last if b == prompt else None) for a, b in spans), None
        if growing:
            spans = split(prompt, chunk, observers)
            return tuple(PromptPass(a, b, Cut("all", full(self._share(b, floor)))) for a, b in spans), None
        if chunk is not None and chunk < prompt and round(self.keep * chunk) < floor:
            raise UsageError(
                f"keep={float(self.keep):g} of a chunk of {chunk} is {round(self.keep * chunk)} entries, below sinks + "
                f"window = {floor}: use a chunk of at least {self._least(floor)}, a smaller window, or a larger keep"
            )
        spans = split(prompt, chunk, max(observers, self._least(floor)))
        return tuple(PromptPass(a, b, Cut("new", full(self._share(b - a, floor)))) for a, b in spans), None

    def _least(self, floor: int) -> int:
        """The fewest entries whose share is at least `floor`."""
        assert self.keep is not None
        n = math.ceil((floor - Fraction(1, 2)) / self.keep)
        return n if round(self.keep * n) >= floor else n + 1

    def _share(self, entries: int, floor: int) -> int:
        """round(keep x entries), at least sinks + window: a prompt shorter than they need is kept whole."""
        assert self.keep is not None
        return min(entries, max(round(self.keep * entries), floor))


def split(prompt: int, chunk: int | None, least: int) -> Sequence[tuple[int, int]]:
    """[0, prompt) in half-open chunks; a last chunk shorter than `least` joins those before it (prulong trap 21)."""
    if chunk is None or chunk >= prompt:
        return [(0, prompt)]
    starts = list(range(0, prompt, chunk))
    while len(starts) > 1 and prompt - starts[-1] < least:
        starts.pop()
    return list(zip(starts, [*starts[1:], prompt], strict=True))
