"""The plane of a chart: scales, ticks, grid and labels, as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 50, 44


@dataclass(frozen=True)
class Scale:
    """A linear scale with round ticks that covers [low, high]."""

    low: float
    high: float
    step: float

    @classmethod
    def over(cls, values: Sequence[float], parts: int = 5) -> "Scale":
        low, high = min(values), max(values)
        if low == high:
            low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
        rough = (high - low) / parts
        power = 10 ** floor(log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        return cls(floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step, step)

    @property
    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + i * self.step for i in range(count + 1)]

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


FRACTION = Scale(0.0, 1.0, 0.2)


@dataclass(frozen=True)
class Frame:
    """A chart of one panel, WIDTH x HEIGHT. Coordinates have a tenth of a pixel."""

    x: Scale
    y: Scale

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Place in the picture of a pair of values."""
        wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return round(LEFT + wide * self.x.share(x), 1), round(TOP + high * (1 - self.y.share(y)), 1)

    def plane(self, title: str, note: str, across: str, up: str) -> list[str]:
        """Title, grid, tick labels and the names of both axes."""
        left, bottom = self.at(self.x.low, self.y.low)
        right, _ = self.at(self.x.high, self.y.high)
        rows = [self.at(self.x.low, v)[1] for v in self.y.ticks]
        columns = [self.at(v, self.y.low)[0] for v in self.x.ticks]
        parts = [
            text(6, 15, title, "t"),
            text(WIDTH - RIGHT, TOP - 14, note, anchor="end"),
            text(6, TOP - 14, up),
            text((left + right) / 2, HEIGHT - 8, across, anchor="middle"),
            '<path class="grid" d="' + "".join(f"M{left} {y}H{right}" for y in rows) + '"/>',
            f'<path class="axis" d="M{left} {bottom}H{right}' + "".join(f"M{x} {bottom}v4" for x in columns) + '"/>',
        ]
        parts += [
            text(left - 7, y + 4, tick(v, self.y.step), anchor="end") for v, y in zip(self.y.ticks, rows, strict=True)
        ]
        parts += [
            text(x, bottom + 17, tick(v, self.x.step), anchor="middle")
            for v, x in zip(self.x.ticks, columns, strict=True)
        ]
        return parts


def tick(value: float, step: float) -> str:
    """As many decimals as the step has: 0.2, 0.25, 1,000."""
    digits = max(0, -floor(log10(step) + 1e-9))
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return f"{value + 0.0:,.{digits}f}"


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "") -> str:
    classes = f' class="{kind}"' if kind else ""
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:g}" y="{y:g}"{classes}{where}>{escape(content)}</text>'
