"""Wall-clock time of a run's stages."""

from dataclasses import dataclass, field
from time import perf_counter

from kvfoot.core.records import Timings


@dataclass
class Clock:
    """Wall-clock seconds of a run's stages; the device is waited for at each stage's end (sampling does)."""

    start: float = field(default_factory=perf_counter)
    prefill: float | None = None
    first: float | None = None
    steps: list[float] = field(default_factory=list)
    held: int = 0

    def filled(self, held: int) -> None:
        """The prompts are read; `held` bytes are kept."""
        self.prefill, self.held = perf_counter() - self.start, held

    def begun(self) -> None:
        """Every sequence has its first token."""
        self.first = perf_counter() - self.start

    def timings(self) -> Timings:
        now = perf_counter() - self.start
        each = 1e3 * sum(self.steps) / len(self.steps) if self.steps else None
        return Timings(
            self.prefill if self.prefill is not None else now, self.first if self.first is not None else now, each
        )
