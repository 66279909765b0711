"""One panel as a picture: score against footprint, peak against footprint, score against speed.

The page puts these pictures inline and the README links them (figures.py): they are drawn once, here.
"""

from collections.abc import Callable, Sequence
from html import escape

from kvfoot.report.frame import FRACTION, HEIGHT, WIDTH, Frame, Scale, text
from kvfoot.report.palette import look, mark
from kvfoot.report.points import Curve, Panel, Point

TITLE = 46
"""Letters that a chart's heading has room for."""
Place = Callable[[Point], tuple[float, float] | None]


def score_chart(panel: Panel, names: Sequence[str], fraction: float) -> str:
    """Mean score with its interval over the KV footprint, and the line at `fraction` of full attention's score."""
    frame = Frame(_footprints(panel), _scores(panel))
    parts = frame.plane(_title(panel), _counts(panel), "KV footprint", _metric(panel))
    parts += _series(frame, panel, names, lambda p: (p.footprint.kv, p.score), bars=True)
    return _svg(panel, "score", parts + _cut(frame, panel, fraction))


def peak_chart(panel: Panel, names: Sequence[str]) -> str:
    """The most entries stored at once over the KV footprint: above the diagonal a method needs more than its mean."""
    places = [p.footprint for c in panel.curves for p in c.points]
    frame = Frame(_footprints(panel), Scale.over([0.0, 1.0, *(f.peak for f in places)]))
    parts = frame.plane(_title(panel), "", "KV footprint", "peak")
    (x0, y0), (x1, y1) = frame.at(0, 0), frame.at(1, 1)
    parts.append(f'<path class="cut" d="M{x0} {y0}L{x1} {y1}"/>')
    return _svg(panel, "peak", parts + _series(frame, panel, names, lambda p: (p.footprint.kv, p.footprint.peak)))


def speed_chart(panel: Panel, names: Sequence[str], fraction: float) -> str | None:
    """Mean score over tokens per second; None without times.

    While decoding, if all points were decoded; answers that one pass scores have no such time, so else of the prompt.
    """
    points = [p for c in panel.curves for p in c.points]
    stage = "decode" if all(p.decode for p in points) else "prefill"
    speeds = [v for p in points if (v := getattr(p, stage))]
    if not speeds:
        return None
    frame = Frame(Scale.over([0.0, *speeds]), _scores(panel))
    words = "decoded tokens per second" if stage == "decode" else "prompt tokens per second"
    parts = frame.plane(_title(panel), "", words, _metric(panel))

    def place(point: Point) -> tuple[float, float] | None:
        speed = getattr(point, stage)
        return (speed, point.score) if speed else None

    parts += _series(frame, panel, names, place, bars=True)
    return _svg(panel, "speed", parts + _cut(frame, panel, fraction))


def _title(panel: Panel) -> str:
    return panel.heading if len(panel.heading) <= TITLE else panel.heading[: TITLE - 1] + "…"


def _metric(panel: Panel) -> str:
    return f"score ({panel.metric})"


def _counts(panel: Panel) -> str:
    counts = {p.n for c in panel.curves for p in c.points}
    few, many = min(counts), max(counts)
    return f"{few} samples a point" if few == many else f"{few} to {many} samples a point"


def _footprints(panel: Panel) -> Scale:
    """From 0 to 1, and further where a method stores more than full attention."""
    return Scale.over([0.0, 1.0, *(p.footprint.kv for c in panel.curves for p in c.points)])


def _scores(panel: Panel) -> Scale:
    ends = [v for c in panel.curves for p in c.points for v in (p.score, *(p.interval or ()))]
    return FRACTION if all(0 <= v <= 1 for v in ends) else Scale.over(ends)


def _cut(frame: Frame, panel: Panel, fraction: float) -> list[str]:
    threshold = panel.threshold(fraction)
    if threshold is None:
        return []
    x0, y = frame.at(frame.x.low, threshold)
    x1 = frame.at(frame.x.high, threshold)[0]
    return [f'<path class="cut" d="M{x0} {y}H{x1}"/>', text(x0 + 4, y - 4, f"{fraction:.0%} of full attention", "k")]


def _series(frame: Frame, panel: Panel, names: Sequence[str], place: Place, bars: bool = False) -> list[str]:
    """A group per curve: line, intervals, marks; full attention last, so that it lies on top."""
    return [_curve(frame, c, names.index(c.label), place, bars) for c in reversed(panel.curves)]


def _curve(frame: Frame, curve: Curve, number: int, place: Place, bars: bool) -> str:
    placed = [(p, frame.at(*xy)) for p in curve.points if (xy := place(p)) is not None]
    line = "L".join(f"{x} {y}" for _, (x, y) in placed)
    parts = [f'<g class="s {look(number, curve.is_full)}" data-s="{number}">']
    if len(placed) > 1:
        parts.append(f'<path class="l" d="M{line}"/>')
    if bars:
        ends = [(x, *(frame.at(frame.x.low, v)[1] for v in p.interval)) for p, (x, _) in placed if p.interval]
        if ends:
            stems = "".join(f"M{x} {a}V{b}M{x - 3:.1f} {a}h6M{x - 3:.1f} {b}h6" for x, a, b in ends)
            parts.append(f'<path class="e" d="{stems}"/>')
    parts += [f'<path class="m" data-p="{p.number}" d="{mark(number, x, y)}"/>' for p, (x, y) in placed]
    return "".join([*parts, "</g>"])


def _svg(panel: Panel, kind: str, parts: list[str]) -> str:
    head = (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(f"{kind} chart, {panel.heading}")}">'
    )
    return "\n".join([head, *parts, "</svg>"])
