"""Colours of the page and its figures, light and dark.

The eight series colours keep an OKLab distance of 0.11 or more to each other and to the ink, also as seen with
protanopia, deuteranopia and tritanopia (Machado 2009), and a contrast of 3:1 to the paper. A series has a mark of its
own as well: no figure depends on colour alone.
"""

SERIES = 8
LIGHT = {
    "paper": "#ffffff", "page": "#f6f7f9", "ink": "#1f2328", "soft": "#59636e", "rule": "#d8dde3", "wash": "#eef1f4",
    "link": "#0b57b0", "good": "#1a7f37", "bad": "#b42318", "marked": "#ffe08a",
    "s1": "#1e3ab3", "s2": "#d97a00", "s3": "#007f80", "s4": "#7a1472",
    "s5": "#3e98c9", "s6": "#972333", "s7": "#8659ff", "s0": "#b55100",
}  # fmt: skip
DARK = {
    "paper": "#14181d", "page": "#0c0f13", "ink": "#e9edf1", "soft": "#9aa5b1", "rule": "#333b44", "wash": "#1f252c",
    "link": "#8fbcff", "good": "#57c977", "bad": "#ff8a7d", "marked": "#6b5200",
    "s1": "#91bbfb", "s2": "#f17b1f", "s3": "#09a1af", "s4": "#ffb0a2",
    "s5": "#2469c2", "s6": "#9b5a58", "s7": "#9680ff", "s0": "#ffde3e",
}  # fmt: skip

CHART = """
.chart{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;font-size:12px}
.chart text{fill:var(--soft)}
.chart .t{fill:var(--ink);font-size:14px;font-weight:600}
.chart .k{fill:var(--ink);paint-order:stroke;stroke:var(--paper);stroke-width:3px}
.chart .grid{stroke:var(--rule);stroke-width:1;fill:none}
.chart .axis{stroke:var(--soft);stroke-width:1;fill:none}
.chart .cut{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:2 4;fill:none}
.chart .l{stroke:var(--c);stroke-width:1.8;fill:none;stroke-linejoin:round}
.chart .again .l{stroke-dasharray:6 3}
.chart .e{stroke:var(--c);stroke-width:1.2;fill:none;opacity:.45}
.chart .m{fill:var(--c);stroke:var(--paper);stroke-width:1.2}
.chart .f .m{fill:var(--paper);stroke:var(--c);stroke-width:2.2}
.chart .back{fill:var(--paper)}
"""


def theme_css() -> str:
    """Variables of both themes: the system's wish, overruled by data-theme on the root element; the charts' rules."""
    series = "".join(f".c{i}{{--c:var(--s{i})}}" for i in range(SERIES)) + ".f{--c:var(--ink)}"
    return (
        f":root{{color-scheme:light;{_variables(LIGHT)}}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{_variables(DARK)}}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{_variables(DARK)}}}"
        f"{series}{CHART}"
    )


def _variables(theme: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in theme.items())


def look(place: int, full: bool) -> str:
    """Classes of the series at this place: its colour, and a broken line from the second round of colours on."""
    if full:
        return "f"
    return f"c{place % SERIES}" + (" again" if place > SERIES else "")


def mark(place: int, x: float, y: float, r: float = 4.6) -> str:
    """A closed outline around (x, y), one of eight; with the colours of `look` the first 64 series differ."""
    shape = (place + place // SERIES) % SERIES
    if shape == 0:  # a plus
        a, b = r * 1.2, r * 0.42
        return f"M{_xy(x - b, y - a)}h{2 * b:.1f}v{a - b:.1f}h{a - b:.1f}v{2 * b:.1f}h{b - a:.1f}v{a - b:.1f}h{-2 * b:.1f}v{b - a:.1f}h{b - a:.1f}v{-2 * b:.1f}h{a - b:.1f}z"  # noqa: E501
    if shape == 1:
        return f"M{_xy(x - r, y)}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z"
    s = r * 0.9
    outline = {
        2: [(-s, -s), (s, -s), (s, s), (-s, s)],
        3: [(0, -1.25 * r), (1.15 * r, 0.8 * r), (-1.15 * r, 0.8 * r)],
        4: [(0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)],
        5: [(0, 1.25 * r), (1.15 * r, -0.8 * r), (-1.15 * r, -0.8 * r)],
        6: [(-1.25 * r, 0), (0.8 * r, -1.15 * r), (0.8 * r, 1.15 * r)],
        7: [(1.25 * r, 0), (-0.8 * r, -1.15 * r), (-0.8 * r, 1.15 * r)],
    }[shape]
    return "M" + "L".join(_xy(x + dx, y + dy) for dx, dy in outline) + "z"


def _xy(x: float, y: float) -> str:
    return f"{x:.1f} {y:.1f}"
