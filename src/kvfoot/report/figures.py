"""The page's charts as SVG files for a README: all panels of a kind in one picture, with the legend on top.

They carry both themes: a viewer that is dark shows them dark.
"""

from collections.abc import Callable, Sequence
from html import escape

from kvfoot.report.charts import peak_chart, score_chart, speed_chart
from kvfoot.report.contents import Report
from kvfoot.report.frame import HEIGHT, WIDTH
from kvfoot.report.palette import look, mark, theme_css
from kvfoot.report.points import Panel, series

COLUMNS, GAP, ROW = 2, 16, 24
LETTER = 7.2
"""Width of a letter of the legend, generously: no font is measured."""


def figures(report: Report) -> dict[str, str]:
    """File name -> SVG document. A kind without figures (no times) is left out."""
    names = series(report.panels)
    kinds: dict[str, Callable[[Panel], str | None]] = {
        "score.svg": lambda p: score_chart(p, names, report.fraction),
        "peak.svg": lambda p: peak_chart(p, names),
        "speed.svg": lambda p: speed_chart(p, names, report.fraction),
    }
    made = {}
    for file, draw in kinds.items():
        drawn = [svg for p in report.panels if (svg := draw(p)) is not None]
        if drawn:
            made[file] = _sheet(drawn, names, report)
    return made


def _sheet(drawn: Sequence[str], names: Sequence[str], report: Report) -> str:
    columns = min(COLUMNS, len(drawn))
    width = max(columns * WIDTH + (columns + 1) * GAP, WIDTH + 2 * GAP)
    legend, top = _legend(names, {c.label for p in report.panels for c in p.curves if c.is_full}, width)
    rows = -(-len(drawn) // columns)
    height = top + rows * (HEIGHT + GAP)
    parts = [
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(report.title)}">',
        f"<style>{theme_css()}</style>",
        f'<rect class="back" width="{width}" height="{height}" rx="10"/>',
        *legend,
    ]
    for i, svg in enumerate(drawn):
        x, y = GAP + (i % columns) * (WIDTH + GAP), top + (i // columns) * (HEIGHT + GAP)
        parts.append(svg.replace("<svg ", f'<svg x="{x}" y="{y}" ', 1))
    return "\n".join([*parts, "</svg>", ""])


def _legend(names: Sequence[str], full: set[str], width: int) -> tuple[list[str], int]:
    """The entries, broken into lines, and where the panels may begin."""
    parts, x, y = [], float(GAP), GAP + 8.0
    for i, name in enumerate(names):
        wide = 34 + LETTER * len(name) + 14
        if x + wide > width - GAP and x > GAP:
            x, y = float(GAP), y + ROW
        parts.append(
            f'<g class="{look(i, name in full)}"><path class="l" d="M{x:.1f} {y - 4:g}h26"/>'
            f'<path class="m" d="{mark(i, x + 13, y - 4)}"/><text x="{x + 34:.1f}" y="{y:g}">{escape(name)}</text></g>'
        )
        x += wide
    return parts, round(y + GAP)
