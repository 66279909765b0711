"""What a report is made of: scored samples as panels, critical footprints, and the command that made them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kvfoot.core.errors import UsageError
from kvfoot.core.results import SampleResult
from kvfoot.report.crossings import Critical
from kvfoot.report.points import Panel, panels


@dataclass(frozen=True)
class Report:
    """commands: what was typed. fraction: of full attention's score, the line. notes: what a reader has to know."""

    panels: list[Panel]
    critical: list[Critical] = field(default_factory=list)
    commands: Sequence[str] = ()
    fraction: float = 0.9
    notes: Sequence[str] = ()
    title: str = "Quality against KV footprint"

    @classmethod
    def of(
        cls,
        results: Iterable[SampleResult],
        critical: Sequence[Critical] = (),
        commands: Sequence[str] = (),
        fraction: float = 0.9,
        notes: Sequence[str] = (),
    ) -> "Report":
        """Raises UsageError where there is nothing to show, or the fraction is no fraction."""
        if not 0 < fraction <= 1:
            raise UsageError(f"--fraction {fraction:g} is outside (0, 1]")
        found = panels(results)
        if not found:
            raise UsageError("no finished samples: nothing to report yet")
        return cls(found, list(critical), tuple(commands), fraction, tuple(notes))
