"""Drafts become rows of training tokens: uint16 ids and one code a token that says how it counts in the loss.

A document is <|bos|><|user|>context\\n\\nquestion<|assistant|>answer<|end|><|user|>question ...
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kvfoot.evaluate.tasks import needles
from kvfoot.evaluate.tasks.corpus import Corpus
from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn
from kvfoot.evaluate.tasks.wording import Wording
from kvfoot.train.recall.books import TokenBooks, Tokens
from kvfoot.train.recall.mix import FAMILIES, GROUPS, Mix
from kvfoot.train.recall.vocab import ASSISTANT, BOS, END, USER

# FORK: a token of an answer where it may go on or end, or a row of a table may: <|end|> and what stands in its place
SILENT, FILLER, BOOK, ANSWER, FORK = range(5)
SHORTEST = 160  # a smaller rest of a row is book text


class Document(NamedTuple):
    tokens: Tokens
    codes: NDArray[np.uint8]


class Row(NamedTuple):
    """One training sequence and the group of families that its documents come from."""

    tokens: Tokens
    codes: NDArray[np.uint8]
    group: int


@dataclass
class Writer:
    """Makes rows; a row is a function of its seed, the length and the mix."""

    tokenizer: Tokenizer
    books: TokenBooks
    corpus: Corpus
    wording: Wording

    def __post_init__(self) -> None:
        self.blank = self.encode(["\n\n"])[0]
        self.marks = np.concatenate(self.encode(["\t", "\n"]))

    def encode(self, texts: list[str]) -> list[Tokens]:
        return [np.array(encoding.ids, np.uint16) for encoding in self.tokenizer.encode_batch_fast(texts)]

    def count(self, texts: list[str]) -> int:
        return sum(len(encoding.ids) for encoding in self.tokenizer.encode_batch_fast(texts))

    def row(self, seed: str, length: int, mix: Mix, whole: float = 0.5) -> Row:
        """A row of exactly `length` tokens. `whole`: how often one document takes all that is left of it."""
        draw = Draw(seed, self.corpus, self.wording, self.count)
        group = draw.weighted({index: mix.mass(index) for index in range(len(GROUPS))})
        shares = mix.of_group(group)
        parts, left = [], length
        while left:
            if left < SHORTEST:
                document = self._book(draw, left)
            else:
                room = left
                if left > 2 * SHORTEST and not draw.chance(whole):
                    room = draw.between(max(SHORTEST, left // 8), left)
                document = self._document(draw, room, draw.weighted(shares))
            parts.append(document)
            left -= len(document.tokens)
        return Row(np.concatenate([p.tokens for p in parts]), np.concatenate([p.codes for p in parts]), group)

    def _document(self, draw: Draw, room: int, family: str) -> Document:
        """A document of at most `room` tokens; one that does not fit is replaced by needles, then by book text."""
        if family == "book":
            return self._book(draw, room)
        for module in (FAMILIES[family], needles):
            draft = module.draft(draw, module.vary(draw, room), room)
            document = self.assemble(draw, draft, room) if draft else None
            if document is not None and len(document.tokens) <= room:
                return document
        return self._book(draw, room)

    def _book(self, draw: Draw, room: int) -> Document:
        tokens, _ = self.books.window(draw.rng, room - 1)
        return Document(np.concatenate([[BOS], tokens]).astype(np.uint16), np.full(room, BOOK, np.uint8))

    def assemble(self, draw: Draw, draft: Draft, room: int) -> Document | None:
        """`draft` with the turns that fit and, if it scatters, filler up to `room`. None when no turn fits."""
        texts = [draft.head, *draft.items]
        for turn in draft.turns:
            texts += [turn.question, *turn.units]
        encoded = iter(self.encode(texts))
        head = next(encoded)
        items = list(itertools.islice(encoded, len(draft.items)))
        several = any(len(turn.units) > 1 for turn in draft.turns)
        turns = [self._turn(turn, encoded, not index, several) for index, turn in enumerate(draft.turns)]
        left = room - 2 - len(head) - sum(map(len, items))
        kept: list[Document] = []
        for spoken in turns:
            if len(spoken.tokens) > left:
                break
            kept.append(spoken)
            left -= len(spoken.tokens)
        if not kept:
            return None
        pieces = [np.array([BOS, USER], np.uint16), head]
        codes = [SILENT, SILENT]  # a text to be quoted, too: nothing of it may be hidden (loop.py)
        if draft.scatter and left >= 24:
            for piece, code in self._scatter(draw, draft, items, left):
                pieces.append(piece)
                codes.append(code)
        else:
            pieces += items
            codes += [SILENT] * len(items)
        written = np.repeat(np.array(codes, np.uint8), [len(piece) for piece in pieces])
        return Document(
            np.concatenate([*pieces, *(turn.tokens for turn in kept)]).astype(np.uint16),
            np.concatenate([written, *(turn.codes for turn in kept)]),
        )

    def _turn(self, turn: Turn, encoded: Iterator[Tokens], first: bool, several: bool) -> Document:
        """Tokens of a turn, the question silent. several: answers of this document may have more than one unit."""
        question = next(encoded)
        units = [next(encoded) for _ in turn.units]
        before = self.blank if first else np.array([USER], np.uint16)
        tokens = np.concatenate([before, question, [ASSISTANT], *units, [END]]).astype(np.uint16)
        codes = np.full(len(tokens), SILENT, np.uint8)
        at = len(before) + len(question) + 1
        codes[at:] = ANSWER
        if several:
            codes[-1] = FORK
            for text, unit in zip(turn.units, units, strict=True):
                if at > len(before) + len(question) + 1:
                    codes[at] = FORK
                if "\t" in text:
                    codes[at : at + len(unit)][np.isin(unit, self.marks)] = FORK
                at += len(unit)
        return Document(tokens, codes)

    def _scatter(self, draw: Draw, draft: Draft, items: list[Tokens], room: int) -> list[tuple[Tokens, int]]:
        """Filler with the items at sentence starts, in the items' order."""
        text, breaks = self.books.window(draw.rng, room)
        places = [int(at) for at in breaks]
        if len(places) < len(items):
            places += [draw.between(0, room - 1) for _ in range(len(items) - len(places))]
        cuts = sorted(draw.rng.sample(places, len(items)))
        if draft.depth is not None:
            wanted = draft.depth * room
            cuts = [min(places, key=lambda at: abs(at - wanted))] * len(items)
        parts: list[tuple[Tokens, int]] = []
        last = 0
        for cut, item in zip(cuts, items, strict=True):
            parts += [(text[last:cut], FILLER), (item, SILENT)]
            last = cut
        return [*parts, (text[last:], FILLER)]
