"""The page of a sweep: one HTML file without a single request (decision 0030)."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from kvfoot.report import cards
from kvfoot.report.charts import peak_chart, score_chart, speed_chart
from kvfoot.report.contents import Report
from kvfoot.report.data import embed, payload
from kvfoot.report.header import facts, warnings
from kvfoot.report.palette import theme_css
from kvfoot.report.points import Panel, series
from kvfoot.report.wrong import Miss, all_misses

SCRIPTS = ("dom", "tip", "legend", "grid", "heat", "depth", "timeline", "start")

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"


def page(report: Report) -> str:
    """The HTML document. Its policy lets nothing run but its own script, and nothing be fetched."""
    script = "\n".join(_web(f"{name}.js") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names, found = series(report.panels), report.panels
    return Template(_web("page.html")).substitute(
        policy=f"{POLICY}; script-src 'sha256-{digest}'",
        title=escape(report.title),
        style=theme_css() + _web("page.css"),
        subtitle=escape(_subtitle(found)),
        commands=cards.typed(report.commands),
        facts=cards.definitions(facts(found)),
        notices=cards.notices([*report.notes, *warnings(found)]),
        legend=cards.legend(found),
        fraction=f"{report.fraction:.0%}",
        scores=_figures(found, "score", lambda p: score_chart(p, names, report.fraction)),
        critical=cards.critical_tables(report.critical, names) or _none("No critical footprints were computed."),
        peaks=_figures(found, "peak", lambda p: peak_chart(p, names)),
        speeds=_figures(found, "speed", lambda p: speed_chart(p, names, report.fraction))
        or _none("No times were recorded."),
        misses=_misses(all_misses(found), names),
        table=cards.figure_table(found),
        data=embed(payload(found)),
        script=script,
    )


def _figures(found: Sequence[Panel], kind: str, draw: Callable[[Panel], str | None]) -> str:
    """Focusable, named groups: the script's arrow keys go from mark to mark in them."""
    return "".join(
        f'<figure class="card" data-panel="{p.number}" tabindex="0" role="group" '
        f'aria-label="{escape(f"{kind}, {p.heading}: arrow keys go from mark to mark")}">{svg}</figure>'
        for p in found
        if (svg := draw(p)) is not None
    )


def _misses(found: Sequence[Miss], names: Sequence[str]) -> str:
    if not found:
        return _none("No method scored below full attention on any sample.")
    return "".join(cards.miss_card(m, names.index(m.label)) for m in found)


def _none(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _subtitle(found: Sequence[Panel]) -> str:
    def several(count: int, word: str) -> str:
        return f"{count} {word}{'' if count == 1 else 's'}"

    methods = {c.points[0].cell.method for p in found for c in p.curves}
    samples = sum(x.n for p in found for c in p.curves for x in c.points)
    models = ", ".join(dict.fromkeys(p.model for p in found))
    tasks, lengths = len({p.task for p in found}), len({p.length for p in found})
    parts = (several(len(methods), "method"), several(tasks, "task"), several(lengths, "length"))
    return f"{models}: {', '.join(parts)}, {samples:,} scored samples"


def _web(name: str) -> str:
    return files("kvfoot.report").joinpath("web", name).read_text(encoding="utf-8")
