"""Parts of the page that need no script: header, critical footprints, answers side by side, all figures as a table.

Every text from a result goes through `escape`: it is shown, never markup.
"""

from collections.abc import Sequence
from html import escape

from kvfoot.core.results import SampleResult
from kvfoot.report.crossings import Critical, categories
from kvfoot.report.palette import look, mark
from kvfoot.report.points import Panel, series, setting
from kvfoot.report.wrong import Miss

RANGE = 160
"""Width of the small picture of a critical footprint, from 0 to 1."""


def definitions(rows: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows)


def typed(commands: Sequence[str]) -> str:
    if not commands:
        return ""
    said = '<p class="soft said">The command that makes these samples, put together from them:</p>'
    return said + "".join(f"<pre>{escape(c)}</pre>" for c in commands)


def notices(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    return '<ul class="notice">' + "".join(f"<li>{escape(w)}</li>" for w in warnings) + "</ul>"


def legend(found: Sequence[Panel]) -> str:
    """A button per series: its mark and its name."""
    full = {c.label for p in found for c in p.curves if c.is_full}
    return "".join(
        f'<button type="button" class="chip {look(i, name in full)}" data-s="{i}" aria-pressed="false">'
        f"{swatch(i, name in full)}{escape(name)}</button>"
        for i, name in enumerate(series(found))
    )


def swatch(place: int, full: bool) -> str:
    return (
        '<svg class="chart swatch" viewBox="0 0 26 14" width="26" height="14" aria-hidden="true">'
        f'<g class="{look(place, full)}"><path class="l" d="M1 7H25"/>'
        f'<path class="m" d="{mark(place, 13, 7)}"/></g></svg>'
    )


def critical_tables(rows: list[Critical], names: Sequence[str]) -> str:
    """A table per category of tasks; a method's interval is drawn from 0 to 1."""
    return "".join(_category(name, members, names) for name, members in categories(rows).items())


def _category(name: str, rows: list[Critical], names: Sequence[str]) -> str:
    body = "".join(
        f'<tr class="s" data-s="{_place(row.method, names)}"><th scope="row">{escape(row.method)}</th>'
        f"<td>{_range(row, _place(row.method, names))}</td>"
        f"<td><b>{escape(str(row.last))}</b><small>{escape(row.span)}</small></td>"
        f"<td>{escape(str(row.first))}</td><td>{row.floor:.3f}</td></tr>"
        for row in rows
    )
    return (
        f'<div class="card"><h3>{escape(name)}</h3><div class="wide"><table><thead><tr><th scope="col">method</th>'
        '<th scope="col" class="range"><span>0</span><span>footprint</span><span>1</span></th><th scope="col">last</th>'
        f'<th scope="col">first</th><th scope="col">floor</th></tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="soft">Full attention scores {rows[0].baseline:.3f}; {rows[0].samples:,} samples.</p></div>'
    )


def _place(method: str, names: Sequence[str]) -> int:
    """-1 for a method that has no curve on this page: drawn in ink."""
    return names.index(method) if method in names else -1


def _range(row: Critical, place: int) -> str:
    """The interval as a bar, the value as a mark, an arrow where the sweep does not bracket it; grey: the floor."""
    at = _across(row.last.footprint)
    parts = [f'<rect class="floor" x="0" y="3" width="{_across(row.floor):.1f}" height="12"/>']
    parts.append(f'<path class="grid" d="M0 9H{RANGE}M{RANGE / 2:g} 5V13M{RANGE} 3V15M0 3V15"/>')
    if row.last.bound:
        way = -1 if row.last.bound == "<" else 1
        parts.append(f'<path class="l" d="M{at:.1f} 9h{16 * way}m{-5 * way} -4l{5 * way} 4l{-5 * way} 4"/>')
    else:
        low, high = _across(row.low.footprint), _across(row.high.footprint)
        parts.append(f'<path class="l" d="M{low:.1f} 9H{high:.1f}M{low:.1f} 5V13M{high:.1f} 5V13"/>')
    parts.append(f'<path class="m" d="{mark(max(place, 0), at, 9)}"/>')
    kind = look(place, False) if place >= 0 else "f"
    return (
        f'<svg class="chart" viewBox="-6 0 {RANGE + 28} 18" width="{RANGE + 28}" height="18" aria-hidden="true">'
        f'<g class="{kind}">{"".join(parts)}</g></svg>'
    )


def _across(value: float) -> float:
    return RANGE * min(1.0, max(0.0, value))


def miss_card(miss: Miss, place: int) -> str:
    """Prompt end, reference, and both answers with the place marked where they part."""
    theirs, full, where = miss.theirs, miss.full, setting(miss.point.cell)
    title = f"{miss.label} {where}".strip()
    return (
        f'<article class="card s miss" data-s="{place}" data-miss="{miss.panel.number}">'
        f"<h3>{swatch(place, False)}{escape(title)}</h3>"
        f'<p class="soft">{escape(miss.panel.heading)}, sample {theirs.index}; '
        f"{miss.lost} of {miss.point.n} samples score below full attention here</p>"
        f"<h4>end of the prompt</h4><pre>{escape(miss.prompt_end)}</pre>"
        f"<h4>reference</h4><pre>{escape(theirs.reference) or '<i>none</i>'}</pre>"
        f'<div class="pair">{_answer("full attention", full, miss.same, miss.full_rest)}'
        f"{_answer(title, theirs, miss.same, miss.their_rest)}</div></article>"
    )


def _answer(name: str, sample: SampleResult, same: str, rest: str) -> str:
    """An answer that was followed along the reference ends with its first other word: it was not written further."""
    first, space, more = _first_word(rest)
    body = escape(same)
    if first:
        body += f"<mark>{escape(first)}</mark>{escape(space + more)}"
    elif sample.complete:
        body += '<mark title="the answer ends here">∎</mark>'
    if not sample.complete:
        body += '<i title="followed as far as the reference tells">…</i>'
    return f"<div><h4>{escape(name)} <span>score {sample.score:.3g}</span></h4><pre>{body}</pre></div>"


def _first_word(text: str) -> tuple[str, str, str]:
    stop = next((i for i, c in enumerate(text) if c.isspace() and text[:i].strip()), len(text))
    return text[:stop], text[stop : stop + 1], text[stop + 1 :]


FIGURES = ("task", "tokens", "method", "setting", "n", "score", "95 %", "footprint", "peak", "read", "bytes", "NLL")


def figure_rows(found: Sequence[Panel]) -> list[list[str]]:
    """Every point as text, in the order of FIGURES."""
    rows = []
    for panel in found:
        for curve in panel.curves:
            for p in curve.points:
                ends, foot = p.interval, p.footprint
                rows.append([
                    panel.subject, f"{panel.length:,}", curve.label, setting(p.cell) or "-", str(p.n), f"{p.score:.3f}",
                    f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "-", f"{foot.kv:.3f}", f"{foot.peak:.3f}",
                    f"{foot.read:.3f}", f"{foot.bytes:.3f}", "-" if p.nll is None else f"{p.nll:.3f}",
                ])  # fmt: skip
    return rows


def figure_table(found: Sequence[Panel]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in FIGURES)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in figure_rows(found))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
