"""The schedule: every choice a run makes is a function of the step, so that a run cut into pieces is the same run.

A plan for N minutes is laid out with the speeds measured on one H100 (docs/recall.md). On another device it takes
longer, or shorter, and is the same plan.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.train.recall.mix import AGAIN, EARLY, FINISH, LATE, MAIN, MIDDLE, START, TAIL, Mix
from kvfoot.train.recall.options import Recipe

# training tokens a second by length, H100 80GB, bf16, compiled; all 24 heads full. Run 4 (records/main.log.jsonl) had
# 2.17M at 512 and 1K, 1.90M at 2K, 1.40M at 8K and 2K, 1.01M at 16K and 4K
SPEED = {512: 2.2e6, 1024: 2.1e6, 2048: 1.9e6, 4096: 1.6e6, 8192: 1.2e6, 16384: 0.81e6}
OVERHEAD = 90.0  # seconds of a run that do not train: tokenising, compilation, probes, evaluation


@dataclass(frozen=True)
class Phase:
    """until: share of the time at which it ends. lengths: share of the batches. spread: share that is routed.

    text: factor of the loss weights of filler and books.
    """

    until: float
    lengths: dict[int, float]
    mix: Mix
    spread: float = 0.0
    text: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """decay_from: share of the time at which the learning rates begin to fall, linearly to 2 %."""

    phases: tuple[Phase, ...]
    decay_from: float = 0.4


PLANS: dict[str, Schedule] = {
    # the released one: every head free, the rates fall inside the run
    "recall": Schedule(
        (
            Phase(0.08, {512: 0.6, 1024: 0.4}, START),
            Phase(0.30, {2048: 1.0}, MAIN),
            Phase(0.53, {8192: 0.6, 2048: 0.4}, MAIN),
            Phase(0.82, {16384: 0.6, 4096: 0.4}, MAIN),
            Phase(1.00, {16384: 0.5, 8192: 0.3, 4096: 0.2}, TAIL),
        )
    ),
    # the next one (docs/decisions/0020): weak families from the start, no tail, text early, heads divided to the end
    "single": Schedule(
        (
            Phase(0.07, {512: 0.6, 1024: 0.4}, EARLY, 1.0, 2.0),
            Phase(0.28, {2048: 0.8, 1024: 0.2}, MIDDLE, 0.4, 2.0),
            Phase(0.52, {8192: 0.6, 2048: 0.4}, MIDDLE, 0.3, 1.0),
            Phase(0.80, {16384: 0.55, 8192: 0.2, 4096: 0.25}, MIDDLE, 0.3, 0.5),
            Phase(1.00, {16384: 0.5, 8192: 0.3, 4096: 0.2}, LATE, 0.3, 0.3),
        )
    ),
    # after it, from its weights: as many minutes again, every head free (0020)
    "again": Schedule(
        (
            Phase(0.10, {2048: 0.6, 1024: 0.4}, AGAIN, 0.0, 0.5),
            Phase(0.35, {8192: 0.5, 2048: 0.5}, AGAIN, 0.0, 0.5),
            Phase(1.00, {16384: 0.5, 8192: 0.3, 4096: 0.2}, AGAIN, 0.0, 0.3),
        ),
        decay_from=0.15,
    ),
    # labour divided among heads (docs/decisions/0021)
    "routes": Schedule(
        (
            Phase(0.035, {512: 1.0}, START, 1.0),
            Phase(0.22, {2048: 1.0}, MAIN, 1.0),
            Phase(0.45, {8192: 0.75, 2048: 0.25}, MAIN, 0.8),
            Phase(0.80, {16384: 0.7, 4096: 0.3}, MAIN, 0.5),
            Phase(1.00, {16384: 0.6, 8192: 0.25, 4096: 0.15}, TAIL, 0.0),
        )
    ),
    # from a finished or unfinished model: the weak families, long contexts, every head free, falling rates
    "tail": Schedule((Phase(1.00, {16384: 0.4, 8192: 0.35, 4096: 0.25}, FINISH),), decay_from=0.0),
    "tiny": Schedule((Phase(0.5, {256: 1.0}, EARLY, 1.0, 2.0), Phase(1.0, {512: 0.5, 256: 0.5}, MIDDLE, 0.5, 0.5))),
}


@dataclass(frozen=True)
class Step:
    """What one step does. `scale` multiplies both learning rates, `text` the weights of running text.

    routed: heads are restricted by the rows' groups.
    """

    phase: int
    length: int
    mix: Mix
    routed: bool
    scale: float
    text: float


class Plan:
    """Steps of a run. `ends[i]` is the step at which phase i ends."""

    def __init__(self, recipe: Recipe, floor: float = 0.02) -> None:
        if recipe.plan not in PLANS:
            raise UsageError(f"unknown plan {recipe.plan!r}{did_you_mean(recipe.plan, list(PLANS))}")
        schedule = PLANS[recipe.plan]
        self.recipe, self.phases, self.decay_from, self.floor = recipe, schedule.phases, schedule.decay_from, floor
        longest = max(length for phase in self.phases for length in phase.lengths)
        if (recipe.batch // recipe.parts) % longest:
            raise UsageError(f"batch / parts is {recipe.batch // recipe.parts}; it must be a multiple of {longest}")
        self.seconds = max(recipe.minutes * 60 - OVERHEAD, recipe.minutes * 30)
        starts = [0.0, *(phase.until for phase in self.phases)]
        self.cost = [
            sum(share * recipe.batch / SPEED.get(length, 1.5e6) for length, share in phase.lengths.items())
            for phase in self.phases
        ]
        shares = [phase.until - start for phase, start in zip(self.phases, starts, strict=False)]
        counts = [max(1, round(share * self.seconds / cost)) for share, cost in zip(shares, self.cost, strict=True)]
        self.ends = list(accumulate(counts))

    @property
    def steps(self) -> int:
        return self.ends[-1]

    def elapsed(self, step: int) -> float:
        """Seconds of training before `step`, by the table of speeds."""
        total, start = 0.0, 0
        for end, cost in zip(self.ends, self.cost, strict=True):
            total += (min(step, end) - start) * cost if step > start else 0.0
            start = end
        return total

    def at(self, step: int) -> Step:
        """The step, 0-based."""
        phase = min(bisect_right(self.ends, step), len(self.phases) - 1)
        here = self.phases[phase]
        rng = random.Random(f"plan/{self.recipe.seed}/{step}")
        length = rng.choices(list(here.lengths), list(here.lengths.values()))[0]
        done = self.elapsed(step) / self.elapsed(self.steps)
        decayed = 1.0 if done < self.decay_from else max(self.floor, (1 - done) / (1 - self.decay_from))
        scale = min(1.0, (step + 1) / self.recipe.warm) * decayed
        routed = rng.random() < here.spread * self.recipe.spread
        return Step(phase, length, here.mix, routed, scale, here.text)
