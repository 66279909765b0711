"""The phrasings of a side: templates with {k} key, {v} value, {t} title, {a} from, {b} to, {n} count, {s} {e} ends.

Rule of spelling: an entity has the same leading character (a space, a quote) in items, questions and answers, so that
it is the same token sequence everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from kvfoot.evaluate.tasks.draw import Draw


class Lookup(NamedTuple):
    """An item that states something and the question that asks for it."""

    item: str
    ask: str


class Listing(NamedTuple):
    """A block of lines: what stands before it, before every line, and the question."""

    head: str
    line: str
    ask: str


class Assignments(NamedTuple):
    """Variables: `base` gives {a} the value {v}; `hop` makes {b} a copy of {a}; `ask` names {v}."""

    base: str
    hop: str
    ask: str


class Markup(NamedTuple):
    """One record of a table: the row, each cell, and the note (running text).

    header: a line before the first record. at: the cell before which the note stands; None for after the last one.
    named: whether the header or the cells tell the columns' names.
    """

    row: str
    cells: tuple[tuple[str, str], ...]
    note: tuple[str, str]
    header: str = ""
    at: int | None = None
    named: bool = True

    def render(self, values: list[str], note: str) -> str:
        parts = [before + value + after for (before, after), value in zip(self.cells, values, strict=True)]
        parts.insert(len(parts) if self.at is None else self.at, f"{self.note[0]}{note}{self.note[1]}")
        return f"{self.row}{''.join(parts)}\n"


class Wording(Protocol):
    """What a family asks its side for. Each call draws one phrasing."""

    def title(self, draw: Draw) -> str: ...
    def needle(self, draw: Draw) -> Lookup: ...
    def passkey(self, draw: Draw, several: bool = False, values: str = "number") -> Lookup: ...
    def passkey_title(self, draw: Draw) -> str: ...
    def multi_value(self, draw: Draw) -> Lookup: ...
    def multi_query(self, draw: Draw) -> Lookup: ...
    def json(self, draw: Draw) -> Lookup: ...
    def chain(self, draw: Draw) -> Listing: ...
    def path(self, draw: Draw) -> Lookup: ...
    def variables(self, draw: Draw) -> Assignments: ...
    def labels(self, draw: Draw) -> str: ...
    def quote(self, draw: Draw) -> str: ...
    def markup(self, draw: Draw, columns: list[str]) -> Markup: ...
    def table(self, draw: Draw) -> str: ...


@dataclass(frozen=True)
class FixedWording:
    """A few phrasings a family, none of which is trained on: the dev sides and the test side."""

    needles: tuple[Lookup, ...]
    passkeys: tuple[Lookup, ...]
    multi_values: tuple[Lookup, ...]
    multi_queries: tuple[Lookup, ...]
    jsons: tuple[Lookup, ...]
    chains: tuple[Listing, ...]
    paths: tuple[Lookup, ...]
    assignments: tuple[Assignments, ...]
    label_lines: tuple[str, ...]
    quotes: tuple[str, ...]
    rows: tuple[
        tuple[str, str, str, str, str], ...
    ]  # row, before a cell ({c}), after a cell, before and after the note
    tables: tuple[str, ...]

    def title(self, draw: Draw) -> str:
        return ""

    def passkey_title(self, draw: Draw) -> str:
        return ""

    def needle(self, draw: Draw) -> Lookup:
        return draw.pick(self.needles)

    def passkey(self, draw: Draw, several: bool = False, values: str = "number") -> Lookup:
        return draw.pick(self.passkeys)

    def multi_value(self, draw: Draw) -> Lookup:
        return draw.pick(self.multi_values)

    def multi_query(self, draw: Draw) -> Lookup:
        return draw.pick(self.multi_queries)

    def json(self, draw: Draw) -> Lookup:
        return draw.pick(self.jsons)

    def chain(self, draw: Draw) -> Listing:
        return draw.pick(self.chains)

    def path(self, draw: Draw) -> Lookup:
        return draw.pick(self.paths)

    def variables(self, draw: Draw) -> Assignments:
        return draw.pick(self.assignments)

    def labels(self, draw: Draw) -> str:
        return draw.pick(self.label_lines)

    def quote(self, draw: Draw) -> str:
        return draw.pick(self.quotes)

    def markup(self, draw: Draw, columns: list[str]) -> Markup:
        row, before, after, note, end = draw.pick(self.rows)
        return Markup(row, tuple((before.format(c=column), after) for column in columns), (note, end))

    def table(self, draw: Draw) -> str:
        return draw.pick(self.tables)

    def phrases(self) -> set[str]:
        """Every template, for the test of disjointness."""
        found: set[str] = {*self.label_lines, *self.quotes, *self.tables}
        for lookups in (self.needles, self.passkeys, self.multi_values, self.multi_queries, self.jsons, self.paths):
            found.update(text for lookup in lookups for text in lookup)
        found.update(text for listing in self.chains for text in listing if text)
        found.update(text for assignment in self.assignments for text in assignment)
        found.update(text for row in self.rows for text in ("".join(row),))
        return found
