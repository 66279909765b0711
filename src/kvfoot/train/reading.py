"""Text files as documents in pieces: .txt, .txt.gz, .jsonl, .jsonl.gz, .parquet; nothing is loaded whole."""

import gzip
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from kvfoot.core.errors import UsageError

PIECE = 1 << 16
"""Characters of a text that are tokenised at once."""
KINDS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")


class Piece(NamedTuple):
    """Part of a document; `last`: it ends here."""

    text: str
    last: bool


def find_files(names: list[Path]) -> list[Path]:
    """Files as given, and those in folders, sorted. Raises UsageError where there is none of a kind that is read."""
    found: list[Path] = []
    for name in names:
        if name.is_dir():
            inside = sorted(p for p in name.rglob("*") if p.name.endswith(KINDS))
            if not inside:
                raise UsageError(f"--data {name}: no file in it ends with {', '.join(KINDS)}")
            found += inside
        elif not name.is_file():
            raise UsageError(f"--data {name}: no such file: give texts ({', '.join(KINDS)}) or folders of them")
        elif not name.name.endswith(KINDS):
            raise UsageError(f"--data {name}: give files that end with {', '.join(KINDS)}")
        else:
            found.append(name)
    return found


def pieces(path: Path, start: int = 0, field: str = "text") -> Iterator[Piece]:
    """The file's pieces from number `start` on. field: of a JSON line or the column of a parquet file.

    A text file is one document; a line of JSON or a row is one. Raises UsageError, one line, for what cannot be read.
    """
    try:
        yield from islice(_pieces(path, field), start, None)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--data {path}: {reason}: give whole files of UTF-8 text") from None


def _pieces(path: Path, field: str) -> Iterator[Piece]:
    if path.suffix == ".parquet":
        for text in _column(path, field):
            yield from _cut(io.StringIO(text))
        return
    packed = path.suffix == ".gz"
    with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
        if not path.name.removesuffix(".gz").endswith(".jsonl"):
            yield from _cut(file)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield from _cut(io.StringIO(_field(line, field, f"{path}, line {number}")))


def _cut(file: io.TextIOBase | io.StringIO) -> Iterator[Piece]:
    """A document in pieces of PIECE characters, cut after a line where one ends in the second half of a piece."""
    left = ""
    while True:
        text = left + file.read(PIECE - len(left))
        if len(text) < PIECE:
            if text:
                yield Piece(text, True)
            return
        at = text.rfind("\n", PIECE // 2) + 1 or PIECE
        left = text[at:] or file.read(1)
        yield Piece(text[:at], not left)
        if not left:
            return


def _field(line: str, field: str, where: str) -> str:
    try:
        value = json.loads(line)[field]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"--data {where}: no JSON object with {field!r}: name its text field (--field)") from None
    if not isinstance(value, str):
        raise UsageError(f"--data {where}: {field!r} is no text")
    return value


def _column(path: Path, field: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(f"--data {path}: reading parquet needs pyarrow: pip install 'kvfoot[parquet]'") from None
    try:
        file = ParquetFile(path)
    except ArrowInvalid as error:
        raise UsageError(f"--data {path}: {str(error).splitlines()[0]}: give a whole parquet file") from None
    with file:
        if field not in file.schema_arrow.names:
            raise UsageError(f"--data {path}: no column {field!r}: name one of {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(batch_size=64, columns=[field]):
            yield from (str(x) for x in batch.column(0) if x.is_valid)
