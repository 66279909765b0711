"""Raw material of the published tasks: the word lists of the package, and running text from a folder of the user's."""

from __future__ import annotations

import functools
import gzip
import itertools
import random
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.tasks.corpus import sentence_starts
from kvfoot.evaluate.tasks.split import DEV_SIDES, book_side

_WORD = re.compile(r"[a-z]{2,}")
SUFFIXES = (".txt", ".txt.gz")


@functools.cache
def words(kind: str) -> tuple[str, ...]:
    """The package's "noun", "adjective" or "verb" list, sorted: RULER's own source of words (wonderwords)."""
    lines = (files("kvfoot") / "data" / "words" / f"{kind}list.txt").read_text().splitlines()
    return tuple(sorted({line.strip() for line in lines if _WORD.fullmatch(line.strip())}))


@functools.cache
def all_words() -> tuple[str, ...]:
    return tuple(sorted({*words("noun"), *words("adjective"), *words("verb")}))


@dataclass(frozen=True)
class Texts:
    """Running text of several files, each without line ends."""

    names: tuple[str, ...]
    contents: tuple[str, ...]

    @functools.cached_property
    def characters(self) -> int:
        return sum(len(text) for text in self.contents)

    def passage(self, rng: random.Random, characters: int) -> str:
        """At least `characters`, beginning with a sentence anywhere; where a file ends, the next one goes on."""
        at = rng.randrange(self.characters)
        index = 0
        while at >= len(self.contents[index]):
            at -= len(self.contents[index])
            index += 1
        text = self.contents[index]
        starts = sentence_starts(text[at : at + 4000])
        found = [text[at + starts[0] + 1 :]] if starts else [text[: characters + 4000]]
        size = len(found[0])
        for later in itertools.cycle((*self.contents[index + 1 :], *self.contents[: index + 1])):
            if size >= characters:
                break
            found.append(later)
            size += len(later) + 1
        return " ".join(found)[:characters]


def read_texts(folder: Path | None, task: str) -> Texts:
    """All .txt and .txt.gz files of `folder`, or of its `books`. `UsageError` says how to name one.

    Where the folder holds books of the dev sides, which kvfoot-recall was not trained on, only those are taken; those
    of the test side stay closed.
    """
    if folder is None:
        raise UsageError(
            f"{task} needs running text: name a folder with .txt or .txt.gz books, in it or in its books/, with --data "
            "FOLDER"
        )
    return _read(folder)


@functools.lru_cache(maxsize=4)
def _read(folder: Path) -> Texts:
    if not folder.is_dir():
        raise UsageError(f"--data {folder}: no such folder: name one with .txt or .txt.gz books")
    places = [place for place in (folder, folder / "books") if place.is_dir()]
    paths = [path for place in places for path in sorted(place.iterdir()) if path.name.endswith(SUFFIXES)]
    held_out = [path for path in paths if book_side(path.name.removesuffix(".gz").removesuffix(".txt")) in DEV_SIDES]
    names, contents = [], []
    for path in held_out or paths:
        data = path.read_bytes()
        try:
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: not a UTF-8 text ({error}): convert it or take it out of the folder") from None
        text = " ".join(text.split())
        if text:
            names.append(path.name)
            contents.append(text)
    if not contents:
        raise UsageError(f"--data {folder}: neither it nor its books/ has a .txt or .txt.gz file with text")
    return Texts(tuple(names), tuple(contents))
