"""Books, words and towns, read from a data folder: the raw material of every task.

Layout of the folder: `books/*.txt.gz`, `words/{noun,adjective,verb}list.txt`, `longproc/longproc_core.tar.gz` (real
town names, for dev and dev2 only).
"""

from __future__ import annotations

import bisect
import functools
import gzip
import itertools
import json
import random
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.tasks import places
from kvfoot.evaluate.tasks.split import Side, book_side, word_side

_WORD = re.compile(r"[a-z]{3,11}")
_RUNNING = re.compile(r"(?<![\w'’-])[a-z]{4,11}(?![\w'’-])")
_SENTENCE = re.compile(r'[.!?]["”]? (?=["“]?[A-Z])')


@dataclass(frozen=True)
class Vocabulary:
    """Entities of one side. Words are lower case, 3 to 11 letters; towns are real names (dev and dev2 only).

    common: further words of its side, of the books (train only): the lists alone are learnt by heart.
    """

    side: Side
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    words: tuple[str, ...]
    towns: tuple[str, ...]
    common: tuple[str, ...] = ()

    @functools.cached_property
    def verbs(self) -> tuple[str, ...]:
        """Words that are neither nouns nor adjectives; all words where there are none."""
        return tuple(sorted({*self.words} - {*self.nouns} - {*self.adjectives})) or self.words


@dataclass(frozen=True)
class Corpus:
    """The running text and the vocabulary of one side. Book text: one paragraph a line."""

    side: Side
    books: dict[str, str]
    vocabulary: Vocabulary

    @functools.cached_property
    def _shelf(self) -> tuple[list[str], list[int]]:
        texts = [self.books[name] for name in sorted(self.books)]
        return texts, list(itertools.accumulate(len(text) for text in texts))

    def _at_random(self, rng: random.Random) -> tuple[str, int]:
        """A book and an offset, every character equally likely."""
        texts, ends = self._shelf
        at = rng.randrange(ends[-1])
        index = bisect.bisect_right(ends, at)
        return texts[index], at - (ends[index - 1] if index else 0)

    def passage(self, rng: random.Random, characters: int) -> str:
        """At least `characters` of one book, beginning with a sentence."""
        for _ in range(100):
            text, at = self._at_random(rng)
            start = _SENTENCE.search(text, at, at + 4000)
            if start and start.end() + characters <= len(text):
                return text[start.end() : start.end() + characters]
        raise UsageError(f"no book of the {self.side} side has {characters} characters in a row; add longer books")

    def fragment(self, rng: random.Random, least: int = 1, most: int = 6) -> str:
        """A few running words of a book, without braces: a carrier that no list of phrases foresees."""
        want = rng.randint(least, most)
        for _ in range(50):
            text, at = self._at_random(rng)
            words = text[at : at + 120].replace("{", " ").replace("}", " ").split()[1 : want + 1]
            if len(words) == want:
                return " ".join(words)
        return "of the"


def sentence_starts(text: str) -> list[int]:
    """Offsets at which a sentence begins after a space: between the mark and the space an item can be put."""
    return [found.end() - 1 for found in _SENTENCE.finditer(text)]


def book_names(folder: Path) -> list[str]:
    """Names of the books of a data folder. `UsageError` when there are none."""
    names = sorted(path.name.removesuffix(".txt.gz") for path in (folder / "books").glob("*.txt.gz"))
    if not names:
        raise UsageError(f"{folder / 'books'} has no *.txt.gz books: name the data folder with --data")
    return names


def read_book(folder: Path, name: str) -> str:
    """A book as one paragraph a line; wrapped lines are joined with spaces."""
    raw = gzip.decompress((folder / "books" / f"{name}.txt.gz").read_bytes()).decode("utf-8")
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", raw))
    return "\n".join(part for part in paragraphs if part)


def _read_words(folder: Path, name: str, side: Side) -> list[str]:
    path = folder / "words" / f"{name}list.txt"
    if not path.is_file():
        raise UsageError(f"{path} is missing: name the data folder with --data")
    words = (line.strip() for line in path.read_text().splitlines())
    return sorted({word for word in words if _WORD.fullmatch(word) and word_side(word) == side})


def _read_towns(folder: Path, side: Side) -> tuple[str, ...]:
    """LongProc's town names, halved between dev and dev2; there are none for the other sides."""
    path = folder / "longproc" / "longproc_core.tar.gz"
    if not path.is_file():
        raise UsageError(f"{path} is missing: the {side} side takes its town names from it")
    with tarfile.open(path) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith("path_traversal_0.5k.json"))
        stream = tar.extractfile(member)
        assert stream is not None
        samples = json.load(stream)
    names = {edge[end] for sample in samples for edge in sample["context_repr"] for end in ("src", "dst")}
    real = [name for name in sorted(names) if not places.trainable(name)]
    return tuple(real[0::2] if side == "dev" else real[1::2])


def read_vocabulary(folder: Path, side: Side, towns: bool = True) -> Vocabulary:
    """Words and towns of `side`; without `towns`, words only: then `words/` is all the folder needs."""
    nouns, adjectives, verbs = (_read_words(folder, name, side) for name in ("noun", "adjective", "verb"))
    words = tuple(sorted({*nouns, *adjectives, *verbs}))
    if len(words) < 100:
        raise UsageError(f"{folder / 'words'}: {len(words)} words on the {side} side; at least 100 are needed")
    real = _read_towns(folder, side) if towns and side in ("dev", "dev2") else ()
    return Vocabulary(side, tuple(adjectives), tuple(nouns), words, real)


def common_words(texts: Iterable[str], side: Side, least: int = 3) -> tuple[str, ...]:
    """Words of `side` that running text has `least` times: 4 to 11 small letters, neither a name nor part of a word."""
    counts = Counter(word for text in texts for word in _RUNNING.findall(text))
    return tuple(sorted(word for word, count in counts.items() if count >= least and word_side(word) == side))


def read_corpus(folder: Path | str, side: Side, books: Sequence[str] | None = None) -> Corpus:
    """Everything of one side. `books` restricts it to some names (tests); they must belong to `side`."""
    folder = Path(folder)
    names = [name for name in book_names(folder) if book_side(name) == side]
    if books is not None:
        names = [name for name in names if name in books]
    if not names:
        raise UsageError(f"{folder / 'books'} has no book of the {side} side (evaluate/tasks/split.py names them)")
    texts = {name: read_book(folder, name) for name in names}
    vocabulary = read_vocabulary(folder, side)
    if side == "train":
        listed = {*vocabulary.words}
        more = tuple(word for word in common_words(texts.values(), side) if word not in listed)
        vocabulary = replace(vocabulary, common=more)
    return Corpus(side, texts, vocabulary)
