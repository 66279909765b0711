"""The critical KV footprints as figures to show (arXiv 2506.17121, section 3); evaluate computes them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Crossing:
    """A footprint; bound "<": the curve has not crossed the line where the sweep ends, ">": it never reached it."""

    footprint: float
    bound: str = ""

    def __str__(self) -> str:
        return f"{self.bound and self.bound + ' '}{self.footprint:.3f}"


@dataclass(frozen=True)
class Critical:
    """One method on one category of tasks, by both rules. low, high: 95 % interval of `last` over samples.

    baseline: full attention's score. floor: the footprint that the chunk size alone costs.
    """

    category: str
    method: str
    baseline: float
    last: Crossing
    first: Crossing
    low: Crossing
    high: Crossing
    floor: float
    samples: int

    @property
    def span(self) -> str:
        return f"{self.low} to {self.high}"


def categories(rows: list[Critical]) -> dict[str, list[Critical]]:
    """Rows by category, smallest footprint first."""
    found: dict[str, list[Critical]] = {}
    for row in rows:
        found.setdefault(row.category, []).append(row)
    return {name: sorted(r, key=lambda row: (row.last.footprint, row.method)) for name, r in found.items()}
