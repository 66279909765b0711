"""Rows of tokens packed from documents, a function of the seed and of what was read: a run resumes where it was cut."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.train.reading import pieces

Encode = Callable[[str], list[int]]
"""Text to token ids, without special tokens."""
LEAST = 16
"""Tokens: in a shorter rest of a row a document begins without its beginning-of-text token."""
OPEN = 64
"""Files held open at once; others are opened again where their cursors stand."""


def encoder(tokenizer: Any) -> Encode:
    """A transformers tokenizer as such a function; a piece longer than its model is nothing to warn about."""
    return lambda text: list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass(frozen=True)
class Row:
    """tokens: int64 [T]. spans: its documents, half-open, covering [0, T). supervised: bool [T], tokens whose
    prediction (PruLong) or hidden state (DuoAttention) counts; None: all."""

    tokens: Tensor
    spans: tuple[tuple[int, int], ...]
    supervised: Tensor | None = None

    def positions(self, restart: bool) -> Tensor:
        """int64 [T]: running on over the row, as the paper's code has them, or from 0 in every document."""
        if not restart:
            return torch.arange(len(self.tokens))
        return torch.cat([torch.arange(b - a) for a, b in self.spans])

    def targets(self) -> Tensor:
        """int64 [T], the next token of the same document; -100 where there is none or it does not count."""
        found = torch.full_like(self.tokens, -100)
        found[:-1] = self.tokens[1:]
        if self.supervised is not None:
            found[:-1][~self.supervised[1:]] = -100
        found[[b - 1 for _, b in self.spans]] = -100
        return found


class Source(Protocol):
    """Where rows come from. `state` is what `restore` needs to go on after the rows taken so far."""

    def take(self, count: int) -> list[Row]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass
class Cursor:
    """Where reading of a file stands: piece number, and tokens of it that were taken."""

    piece: int = 0
    taken: int = 0


class Packed:
    """Rows of exactly `length` tokens from text files. Every document of a row comes from a file drawn by its size.

    begin: token ids before every document (a beginning-of-text token). A document longer than what is left of a row is
    cut, and goes on as another document in a later row. Files are read again from the start when they end.
    """

    def __init__(
        self,
        files: Sequence[Path],
        encode: Encode,
        length: int,
        *,
        seed: int = 0,
        begin: Sequence[int] = (),
        column: str = "text",
    ):
        self.files, self.encode, self.length, self.seed = list(files), encode, length, seed
        self.begin, self.column = list(begin), column
        self.cursors = [Cursor() for _ in self.files]
        self.drawn = 0
        self._weights = [path.stat().st_size for path in self.files]
        self._open: dict[int, _Reader] = {}

    def check(self) -> None:
        """Raises UsageError, saying how many tokens are missing, where all files together do not fill a row."""
        found = 0
        for path in self.files:
            for piece in pieces(path, 0, self.column):
                found += len(self.encode(piece.text))
                if found >= self.length:
                    return
        raise UsageError(
            f"--data has {found:,} tokens, a row of --length {self.length:,} needs {self.length - found:,} more: add "
            "text or shorten the rows"
        )

    def take(self, count: int) -> list[Row]:
        return [self._row() for _ in range(count)]

    def state(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "cursors": [[c.piece, c.taken] for c in self.cursors]}

    def restore(self, state: dict[str, Any]) -> None:
        if len(state["cursors"]) != len(self.files):
            raise UsageError(f"the run read {len(state['cursors'])} files, --data has {len(self.files)}: give the same")
        self.drawn = state["drawn"]
        self.cursors = [Cursor(*numbers) for numbers in state["cursors"]]
        self._open.clear()

    def words(self, count: int) -> list[int]:
        """`count` tokens of text, of one document after the other of a file, without beginnings."""
        index, tokens = self._draw(), list[int]()
        while len(tokens) < count:
            tokens += self._document(index, count - len(tokens))
        return tokens

    def _draw(self) -> int:
        """A file, by size."""
        rng = random.Random(f"pack/{self.seed}/{self.drawn}")
        self.drawn += 1
        return rng.choices(range(len(self.files)), self._weights)[0]

    def _row(self) -> Row:
        tokens: list[int] = []
        spans: list[tuple[int, int]] = []
        while len(tokens) < self.length:
            room = self.length - len(tokens)
            begin = self.begin if room > len(self.begin) + LEAST else []
            part = begin + self._document(self._draw(), room - len(begin))
            if len(part) > len(begin):
                spans.append((len(tokens), len(tokens) + len(part)))
                tokens += part
        return Row(torch.tensor(tokens), tuple(spans))

    def _document(self, index: int, room: int) -> list[int]:
        """At most `room` tokens of one document of a file, from its cursor on."""
        tokens: list[int] = []
        while len(tokens) < room:
            reader, cursor = self._reader(index), self.cursors[index]
            if reader.now is None:  # the file's end
                self.cursors[index] = Cursor()
                del self._open[index]
                break
            ids, last = reader.now
            part = ids[cursor.taken : cursor.taken + room - len(tokens)]
            tokens += part
            cursor.taken += len(part)
            if cursor.taken == len(ids):
                self.cursors[index] = Cursor(cursor.piece + 1)
                reader.advance()
                if last:
                    break
        return tokens

    def _reader(self, index: int) -> "_Reader":
        """The file's reader, now the last of those that are open."""
        reader = self._open.pop(index, None) or _Reader(self, index)
        self._open[index] = reader
        if len(self._open) > OPEN:
            del self._open[next(iter(self._open))]
        return reader


class _Reader:
    """A file's pieces as tokens from its cursor on: `now`, or None at the end."""

    def __init__(self, source: Packed, index: int):
        self._pieces = pieces(source.files[index], source.cursors[index].piece, source.column)
        self._encode = source.encode
        self.now: tuple[list[int], bool] | None = None
        self.advance()

    def advance(self) -> None:
        piece = next(self._pieces, None)
        self.now = None if piece is None else (self._encode(piece.text), piece.last)


@dataclass
class Written:
    """Rows made by a function of their number: nothing but the number is state."""

    make: Callable[[int], Row]
    number: int = field(default=0)

    def take(self, count: int) -> list[Row]:
        self.number += count
        return [self.make(i) for i in range(self.number - count, self.number)]

    def state(self) -> dict[str, Any]:
        return {"number": self.number}

    def restore(self, state: dict[str, Any]) -> None:
        self.number = state["number"]
