"""The smallest footprint that keeps a target, for someone's own prompts: successive halving over methods x settings.

Every round brings new prompts and keeps the better half: settings that reach the target, smallest footprint first, then
those nearest to it. A last part of the prompts takes no part in the choice: it says how sure the result is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from kvfoot.core.errors import UsageError
from kvfoot.core.settings import Settings
from kvfoot.evaluate.judge import Judge, Verdict
from kvfoot.evaluate.sweep import Sweep, Variant

HELD_OUT = 3
"""One prompt of so many is kept for the interval."""
FINALISTS = 3
FIRST = 2
"""Prompts of the first round, at least."""
ROUNDS = 2000
Say = Callable[[str], None]


@dataclass
class Candidate:
    """A setting and what it has shown so far; verdicts[i] beside full attention's on the same prompt."""

    variant: Variant
    verdicts: list[Verdict] = field(default_factory=list)
    full: list[Verdict] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Of full attention's: 1 is as good."""
        base = sum(v.score for v in self.full)
        return sum(v.score for v in self.verdicts) / base if base else 0.0

    @property
    def footprint(self) -> float:
        return sum(v.footprint for v in self.verdicts) / len(self.verdicts)

    @property
    def kl(self) -> float | None:
        found = [v.kl for v in self.verdicts if v.kl is not None]
        return sum(found) / len(found) if found else None

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % of the score, by bootstrap over prompts."""
        own, base = (np.array([v.score for v in x]) for x in (self.verdicts, self.full))
        draws = np.random.default_rng(seed).integers(0, len(own), (ROUNDS, len(own)))
        sums = base[draws].sum(1)
        ratios = np.divide(own[draws].sum(1), sums, out=np.zeros(ROUNDS), where=sums > 0)
        return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))

    def __str__(self) -> str:
        return str(self.variant)


@dataclass(frozen=True)
class Tuned:
    """chosen: on the prompts of the search; checked: the same setting on those that were held out.

    passed: whether the check reaches the target too. judged: (setting, prompt) pairs that were run.
    """

    chosen: Candidate
    checked: Candidate
    passed: bool
    finalists: list[Candidate]
    judged: int
    grid: int


def search(
    variants: Sequence[Variant], judge: Judge, prompts: int, target: float, *, full: Variant, say: Say = lambda _: None
) -> Tuned:
    """Raises UsageError for a target outside (0, 1], too few prompts, or prompts on which full attention scores 0."""
    if not 0 < target <= 1:
        raise UsageError(f"--target {target:g} is outside (0, 1]")
    if prompts < HELD_OUT:
        raise UsageError(f"{prompts} prompts are too few: give at least {HELD_OUT}, better 20")
    searched = prompts - prompts // HELD_OUT
    live = [Candidate(v) for v in variants]
    judged = done = 0
    for goal, keep in rounds(len(live), searched):
        judged += _judge(live, judge, range(done, goal), full)
        done = goal
        if sum(v.score for v in live[0].full) == 0:
            raise UsageError("full attention scores 0 on these prompts: there is nothing to keep (look at the answers)")
        live = sorted(live, key=lambda c: _rank(c, target))[:keep]
        say(f"{done} prompts: {len(live)} settings left, best so far {live[0]}: {live[0].score:.3f}")
    good = [c for c in live if c.score >= target]
    chosen = min(good, key=lambda c: c.footprint) if good else Candidate(full, list(live[0].full), list(live[0].full))
    checked = Candidate(chosen.variant)
    judged += _judge([checked], judge, range(searched, prompts), full)
    return Tuned(chosen, checked, checked.score >= target, live, judged, len(variants) * prompts)


def rounds(settings: int, prompts: int) -> list[tuple[int, int]]:
    """(prompts seen after the round, settings kept after it): half of the settings leave, twice the prompts come."""
    count = max(1, math.ceil(math.log2(max(settings / FINALISTS, 1))))
    found: list[tuple[int, int]] = []
    for i in range(count):
        settings = max(min(FINALISTS, settings), math.ceil(settings / 2))
        seen = prompts if i == count - 1 else max(FIRST, prompts >> (count - 1 - i))
        found.append((min(seen, prompts), settings))
    return found


def settings_of(tuned: Tuned, sweep: Sweep, metric: str, target: float) -> Settings:
    """As a file takes them, with what was found."""
    v, low_high = tuned.chosen.variant, tuned.checked.interval()
    return Settings(
        method=v.method.name,
        options=v.method.options(),
        keep=v.value if v.knob == "keep" else None,
        budget=int(v.value or 0) if v.knob == "budget" else None,
        evict=v.evict or "post",
        chunk=sweep.chunk,
        found={
            "model": sweep.model,
            "metric": metric,
            "target": target,
            "score": round(tuned.checked.score, 4),
            "interval": [round(x, 4) for x in low_high],
            "footprint": round(tuned.checked.footprint, 4),
            "kl": None if tuned.checked.kl is None else round(tuned.checked.kl, 5),
            "held_out_prompts": len(tuned.checked.verdicts),
            "search_score": round(tuned.chosen.score, 4),
            "search_prompts": len(tuned.chosen.verdicts),
            "confirmed": tuned.passed,
        },
    )


def _judge(live: Sequence[Candidate], judge: Judge, indices: range, full: Variant) -> int:
    for i in indices:
        base, *verdicts = judge([full, *(c.variant for c in live)], i)
        for candidate, verdict in zip(live, verdicts, strict=True):
            candidate.verdicts.append(verdict)
            candidate.full.append(base)
    return len(live) * len(indices)


def _rank(c: Candidate, target: float) -> tuple[bool, float, float]:
    """Passing ones by footprint; then the others by how near they come."""
    passes = c.score >= target
    return (not passes, c.footprint if passes else -c.score, c.footprint)
