"""Runs of one prompt as a picture: bytes held against the dense cache, and the footprint with its peak. Plain SVG."""

from collections.abc import Sequence
from html import escape

from kvfoot.core.records import RunRecord
from kvfoot.report.table import size, title

WIDTH, LEFT, GAP, BAR, STEP, TOP = 900, 230, 30, 18, 42, 84
INK, SOFT, RAIL, HELD, KV = "#1f2328", "#59636e", "#e7eaee", "#2f6fb3", "#b3682f"


def bars(records: Sequence[RunRecord], verdicts: Sequence[str] = ()) -> str:
    """An SVG document: two panels, a row per run. verdicts: a word for each row's answer."""
    panel = (WIDTH - LEFT - 2 * GAP - 20) // 2
    second = LEFT + panel + 2 * GAP
    height = TOP + STEP * len(records) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(_caption(records))}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        _text(20, 28, _caption(records), INK, weight="600"),
        _text(LEFT, 60, "cache held after prefill", HELD, weight="600"),
        _text(second, 60, "KV footprint (tick: peak)", KV, weight="600"),
    ]
    for i, record in enumerate(records):
        y = TOP + STEP * i
        share = record.memory.held_bytes / record.memory.dense_bytes
        parts.append(_text(LEFT - 14, y + 14, title(record), INK, anchor="end"))
        parts += _bar(LEFT, y, panel, share, HELD, size(record.memory.held_bytes))
        parts += _bar(second, y, panel, record.footprint.kv, KV, f"{record.footprint.kv:.3f}", record.footprint.peak)
        if i < len(verdicts):
            parts.append(_text(LEFT - 14, y + 28, f"answer {verdicts[i]}", SOFT, anchor="end", points=11))
    dense = max(record.memory.dense_bytes for record in records)
    foot = height - 14
    parts.append(_text(LEFT, foot, f"whole rail: the dense cache, {size(dense)}", SOFT, points=11))
    parts.append(_text(second, foot, "whole rail: full attention, 1", SOFT, points=11))
    return "\n".join([*parts, "</svg>", ""])


def _caption(records: Sequence[RunRecord]) -> str:
    first = records[0]
    return f"{first.config['model']}, a prompt of {first.tokens['prompt']:,} tokens, {first.config['dtype']}"


def _bar(x: int, y: int, width: int, share: float, colour: str, label: str, tick: float | None = None) -> list[str]:
    """A bar on its rail; what exceeds the rail (page slack) is cut at its end, the label says the figure."""
    long = round(width * min(share, 1.0), 1)
    inside = share > 0.3
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{BAR}" rx="3" fill="{RAIL}"/>',
        f'<rect x="{x}" y="{y}" width="{long}" height="{BAR}" rx="3" fill="{colour}"/>',
        _text(x + long - 8, y + 14, label, "#ffffff", anchor="end")
        if inside
        else _text(x + long + 8, y + 14, label, INK),
    ]
    if tick is not None:
        at = round(x + width * min(tick, 1.0), 1)
        parts.append(f'<line x1="{at}" x2="{at}" y1="{y - 4}" y2="{y + BAR + 4}" stroke="{INK}" stroke-width="2"/>')
    return parts


def _text(
    x: float, y: float, text: str, colour: str, *, anchor: str = "start", weight: str = "400", points: int = 13
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}" '
        f'font-size="{points}">{escape(text)}</text>'
    )
