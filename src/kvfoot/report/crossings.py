"""The critical KV footprints as figures to show (arXiv 2506.17121, section 3.3); evaluate computes them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Crossing:
    """Where a curve falls below the line. sign: "<" or ">" where the sweep does not bracket it, "" where it does.

    low, high: the 95 % interval over samples, None where it was not computed.
    """

    value: float
    sign: str = ""
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        sign = f"{self.sign} " if self.sign else ""
        span = "" if self.low is None or self.high is None else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{sign}{self.value:.3f}{span}"


@dataclass(frozen=True)
class Critical:
    """One method on one group of tasks ("recall, 4,096 tokens"), by both rules; the floor is the chunk size's."""

    group: str
    method: str
    last: Crossing
    first: Crossing
    floor: float | None = None


def groups(rows: list[Critical]) -> dict[str, list[Critical]]:
    """Rows by group, smallest footprint first."""
    found: dict[str, list[Critical]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return {group: sorted(r, key=lambda row: (row.last.value, row.method)) for group, r in found.items()}
