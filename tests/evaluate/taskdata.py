"""A data folder of a few kilobytes: two training books, one for each other side, and words of all sides."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
import tarfile
from pathlib import Path

from kvfoot.evaluate.tasks.split import BOOKS

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def made_up_words(count: int) -> list[str]:
    """Different words of six letters, in a fixed order."""
    syllables = [a + b for a in CONSONANTS for b in VOWELS]
    words = ["".join(parts) for parts in itertools.product(syllables[::7], syllables[::3], syllables[::5])]
    return random.Random(5).sample(words, count)


def book(seed: int, characters: int) -> str:
    """Paragraphs of sentences with a small vocabulary, wrapped like a source file."""
    rng, words, out, size = random.Random(seed), made_up_words(300), [], 0
    while size < characters:
        sentence = " ".join(rng.choice(words) for _ in range(rng.randint(4, 12))).capitalize() + "."
        size += len(sentence) + 1
        out.append(sentence)
    paragraphs = ["\n".join(out[i : i + 5]) for i in range(0, len(out), 5)]
    return "\n\n".join(paragraphs)


def write(folder: Path, characters: int = 60_000, training_books: int = 2) -> Path:
    (folder / "books").mkdir(parents=True)
    (folder / "words").mkdir()
    (folder / "longproc").mkdir()
    names = [*(f"nobody_book-{i}" for i in range(training_books)), *(names[0] for names in BOOKS.values())]
    for seed, name in enumerate(names):
        (folder / "books" / f"{name}.txt.gz").write_bytes(gzip.compress(book(seed, characters).encode(), mtime=0))
    words = made_up_words(4000)
    for kind, part in (("noun", words[:2400]), ("adjective", words[2400:3200]), ("verb", words[3200:])):
        (folder / "words" / f"{kind}list.txt").write_text("\n".join(part) + "\n")
    edges = [{"src": f"Realtown{i}x", "dst": f"Realtown{i + 1}x"} for i in range(60)]
    data = json.dumps([{"context_repr": edges}]).encode()
    with tarfile.open(folder / "longproc" / "longproc_core.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("data/path_traversal/path_traversal_0.5k.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return folder
