"""Table-to-TSV (LongProc's html_to_tsv): records with running text between them; write their cells row by row."""

from __future__ import annotations

from dataclasses import dataclass

from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn


@dataclass(frozen=True)
class TableShape:
    """note: tokens of running text after each record; None spreads the rows over the whole room.

    extra: columns that the records have and the question does not name.
    """

    rows: int = 40
    kinds: tuple[str, ...] | None = None
    columns: int = 3
    note: int | None = None
    filler: bool = False
    extra: int = 0


def vary(draw: Draw, room: int) -> TableShape:
    """3 to 48 rows, 2 to 5 columns and up to 3 not asked for; no notes, short ones, or (mostly) over the whole room."""
    note = draw.weighted({0: 0.12, 1: 0.28, 2: 0.6})
    extra = draw.between(1, 3) if draw.chance(0.4) else 0
    rows = draw.between(3, 48) if draw.chance(0.7) else 40
    length = None if note == 2 else 0 if note == 0 else draw.log_between(4, 300)
    return TableShape(
        rows,
        None,
        draw.between(2, 5) if draw.chance(0.6) else 3,
        length,
        length is not None and draw.chance(0.5),
        extra,
    )


def draft(draw: Draw, shape: TableShape, room: int) -> Draft | None:
    first = {"word": 0.25, "words": 0.4, "number": 0.2, "town": 0.15} if draw.training else {"words": 1.0}
    other = {"word": 0.35, "words": 0.25, "number": 0.25, "town": 0.15}
    kinds = shape.kinds or (
        draw.weighted(first),
        *(draw.weighted(other) for _ in range(shape.columns + shape.extra - 1)),
    )
    names = draw.distinct(draw.noun, len(kinds))
    asked = list(range(len(kinds)))
    if shape.extra:
        asked = sorted(draw.shuffled(asked)[: -shape.extra])
    markup, ask = draw.wording.markup(draw, names), draw.wording.table(draw)
    if not markup.named:  # nothing tells the columns apart: the question is for all of them
        asked = list(range(len(kinds)))

    def record() -> list[str]:
        return [draw.value(kind) for kind in kinds]

    per_row = draw.mean_tokens(lambda: markup.render(record(), "")) + draw.mean_tokens(lambda: "\t".join(record())) + 2
    room -= 30 + draw.count([ask, *names])
    rows = min(shape.rows, int(room / (per_row + (shape.note or 0))))
    if rows < 2:
        return None
    length = shape.note
    if length is None:
        length = max(0, int((room * 0.98 - rows * per_row * 1.04) / rows) - 2)
    records = [record() for _ in range(rows)]
    notes = _notes(draw, rows, length)
    block = "".join(markup.render(cells, note) for cells, note in zip(records, notes, strict=True))
    units = tuple("\t".join(cells[column] for column in asked) + "\n" for cells in records)
    turn = Turn(ask.format(c=", ".join(names[column] for column in asked)), units)
    return Draft(
        "", (f"\n{markup.header}{block}",), (turn,), scatter=shape.filler, metadata={"rows": rows, "note": length}
    )


def _notes(draw: Draw, rows: int, tokens: int) -> list[str]:
    """Consecutive stretches of one book, `tokens` each, cut at spaces."""
    if tokens < 1:
        return [""] * rows
    probe = draw.corpus.passage(draw.rng, 4000)
    each = max(4, int(tokens * 4000 / draw.count([probe]) * 0.98))
    text = draw.corpus.passage(draw.rng, each * rows + 1).replace("\n", " ")
    return [text[i * each : (i + 1) * each].strip() for i in range(rows)]
