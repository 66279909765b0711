"""The samples that a method loses first: at its mildest setting that scores below full attention on any sample."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvfoot.core.results import SampleResult
from kvfoot.report.points import Panel, Point

PROMPT_END, ANSWER, BEFORE = 300, 500, 160
"""Characters shown: of the prompt's end, of an answer, and of what both answers share before they part."""


@dataclass(frozen=True)
class Miss:
    """One sample under a method and under full attention. same: what both answers begin with (its end, if long)."""

    panel: Panel
    label: str
    point: Point
    lost: int
    theirs: SampleResult
    full: SampleResult
    same: str
    full_rest: str
    their_rest: str

    @property
    def prompt_end(self) -> str:
        return tail(self.theirs.prompt, PROMPT_END)


def misses(panel: Panel, most: int = 2) -> list[Miss]:
    """For every curve that loses any sample the `most` heaviest losses at its mildest losing setting."""
    if panel.full is None:
        return []
    full = {(s.cell.seed, s.index): s for s in panel.full.samples}
    found = []
    for curve in panel.curves:
        for point in curve.points:
            lost = [(full[key], s) for s in point.samples if _loses(s, full.get(key := (s.cell.seed, s.index)), panel)]
            if lost and not curve.is_full:
                lost.sort(key=lambda pair: -abs(pair[0].score - pair[1].score))
                found += [_miss(panel, curve.label, point, len(lost), *pair) for pair in lost[:most]]
                break
    return found


def _loses(sample: SampleResult, full: SampleResult | None, panel: Panel) -> bool:
    if full is None:
        return False
    worse = full.score - sample.score if not panel.lower else sample.score - full.score
    return worse > 1e-9


def _miss(panel: Panel, label: str, point: Point, lost: int, full: SampleResult, theirs: SampleResult) -> Miss:
    shared = common(full.answer, theirs.answer)
    return Miss(
        panel,
        label,
        point,
        lost,
        theirs,
        full,
        same=tail(full.answer[:shared], BEFORE),
        full_rest=head(full.answer[shared:], ANSWER),
        their_rest=head(theirs.answer[shared:], ANSWER),
    )


def common(one: str, other: str) -> int:
    """Characters with which both begin, back to the start of the word in which they part."""
    n = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if n == len(one) == len(other):
        return n
    while n and not one[n - 1].isspace():
        n -= 1
    return n


def tail(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[-most:]


def head(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "…"


def all_misses(found: Sequence[Panel]) -> list[Miss]:
    return [miss for panel in found for miss in misses(panel)]
