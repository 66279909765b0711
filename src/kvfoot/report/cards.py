"""Parts of the page that need no script: header, critical footprints, answers side by side, all figures as a table.

Every text from a result goes through `escape`: it is shown, never markup.
"""

from collections.abc import Sequence
from html import escape

from kvfoot.report.charts import heading
from kvfoot.report.crossings import Critical, Crossing, groups
from kvfoot.report.palette import look, mark
from kvfoot.report.points import Panel, series, setting
from kvfoot.report.wrong import Miss

RANGE = 160
"""Width of the small picture of a critical footprint, from 0 to 1."""


def definitions(rows: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows)


def notices(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    return '<ul class="notice">' + "".join(f"<li>{escape(w)}</li>" for w in warnings) + "</ul>"


def legend(found: Sequence[Panel]) -> str:
    """A button per series: its mark and its name."""
    full = {c.label for p in found for c in p.curves if c.is_full}
    return "".join(
        f'<button type="button" class="chip {look(i, name in full)}" data-s="{i}" aria-pressed="false">'
        f'{swatch(i, name in full)}{escape(name)}</button>'
        for i, name in enumerate(series(found))
    )


def swatch(place: int, full: bool) -> str:
    return (
        '<svg class="chart swatch" viewBox="0 0 26 14" width="26" height="14" aria-hidden="true">'
        f'<g class="{look(place, full)}"><path class="l" d="M1 7H25"/><path class="m" d="{mark(place, 13, 7)}"/></g></svg>'
    )


def critical_tables(rows: list[Critical], names: Sequence[str]) -> str:
    """A table per group of tasks; a method's range is drawn from 0 to 1."""
    return "".join(_critical(group, members, names) for group, members in groups(rows).items())


def _critical(group: str, rows: list[Critical], names: Sequence[str]) -> str:
    body = "".join(
        f'<tr class="s" data-s="{_place(row.method, names)}"><th scope="row">{escape(row.method)}</th>'
        f"<td>{_range(row, _place(row.method, names))}</td>"
        f"<td>{_crossing(row.last)}</td><td>{_crossing(row.first)}</td></tr>"
        for row in rows
    )
    floors = sorted({row.floor for row in rows if row.floor is not None})
    floor = f'<p class="soft">The chunk size alone costs {" or ".join(f"{f:.3f}" for f in floors)}.</p>' if floors else ""
    return (
        f'<div class="card"><h3>{escape(group)}</h3><div class="wide"><table><thead><tr><th scope="col">method</th>'
        '<th scope="col" class="range"><span>0</span><span>footprint</span><span>1</span></th>'
        f'<th scope="col">last rule</th><th scope="col">first rule</th></tr></thead><tbody>{body}</tbody></table></div>'
        f"{floor}</div>"
    )


def _place(method: str, names: Sequence[str]) -> int:
    """-1 for a method that has no curve on this page: drawn in ink."""
    return names.index(method) if method in names else -1


def _crossing(of: Crossing) -> str:
    sign = f"{escape(of.sign)}&thinsp;" if of.sign else ""
    span = "" if of.low is None or of.high is None else f"<small>{of.low:.3f} to {of.high:.3f}</small>"
    return f"<b>{sign}{of.value:.3f}</b>{span}"


def _range(row: Critical, place: int) -> str:
    """The interval of the last rule as a bar, its value as a mark; an arrow where the sweep does not bracket it."""
    at, parts = _across(row.last.value), ['<path class="grid" d="M0 9H160M80 5V13M160 3V15M0 3V15"/>']
    if row.floor is not None:
        parts.append(f'<rect class="floor" x="0" y="3" width="{_across(row.floor):.1f}" height="12"/>')
    if row.last.low is not None and row.last.high is not None:
        parts.append(f'<path class="l" d="M{_across(row.last.low):.1f} 9H{_across(row.last.high):.1f}"/>')
    if row.last.sign:
        way = -1 if row.last.sign == "<" else 1
        parts.append(f'<path class="l" d="M{at:.1f} 9h{16 * way}m{-5 * way} -4l{5 * way} 4l{-5 * way} 4"/>')
    parts.append(f'<path class="m" d="{mark(max(place, 0), at, 9)}"/>')
    kind = look(place, False) if place >= 0 else "f"
    return (
        f'<svg class="chart" viewBox="-6 0 {RANGE + 12} 18" width="{RANGE + 12}" height="18" aria-hidden="true">'
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
        f'<h3>{swatch(place, False)}{escape(title)}</h3>'
        f'<p class="soft">{escape(heading(miss.panel))}, sample {theirs.index}; '
        f"{miss.lost} of {miss.point.n} samples score below full attention here</p>"
        f'<h4>end of the prompt</h4><pre>{escape(miss.prompt_end)}</pre>'
        f'<h4>reference</h4><pre>{escape(theirs.reference) or "<i>none</i>"}</pre>'
        f'<div class="pair">{_answer("full attention", full.score, miss.same, miss.full_rest)}'
        f"{_answer(title, theirs.score, miss.same, miss.their_rest)}</div></article>"
    )


def _answer(name: str, score: float, same: str, rest: str) -> str:
    first, space, more = _first_word(rest)
    if first:
        body = f"{escape(same)}<mark>{escape(first)}</mark>{escape(space + more)}"
    else:
        body = f'{escape(same)}<mark title="ends here">∎</mark>'
    return f"<div><h4>{escape(name)} <span>score {score:.3g}</span></h4><pre>{body}</pre></div>"


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
                    panel.task, f"{panel.length:,}", curve.label, setting(p.cell) or "-", str(p.n), f"{p.score:.3f}",
                    f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "-", f"{foot.kv:.3f}", f"{foot.peak:.3f}",
                    f"{foot.read:.3f}", f"{foot.bytes:.3f}", "-" if p.nll is None else f"{p.nll:.3f}",
                ])  # fmt: skip
    return rows


def figure_table(found: Sequence[Panel]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in FIGURES)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in figure_rows(found))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
