"""Who may see what: books, words and towns of the training side, of three development sides, and of the test side.

`train` feeds training. `dev`, `dev2` and `dev3` are held out but looked at between runs (`dev2` was the test side of
the first release, `dev3` of the second, which is the checkpoint now shipped). `test` is opened once, for a final one.
The shipped checkpoint was trained on the books and words of `test`: neither it nor what starts from it is scored there.
No book, word, town or phrasing belongs to two sides; tests/evaluate/test_sides.py checks it.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Side = Literal["train", "dev", "dev2", "dev3", "test"]
SIDES: tuple[Side, ...] = ("train", "dev", "dev2", "dev3", "test")
DEV_SIDES: tuple[Side, ...] = ("dev", "dev2", "dev3")
DESCRIPTIONS: dict[Side, str] = {
    "train": "training",
    "dev": "looked at between runs; RULER's and LongProc's own sentences",
    "dev2": "looked at between runs; the test side of the first release",
    "dev3": "looked at between runs; the test side of the second release",
    "test": "the third test side: not for the second release or what starts from it, trained on its books and words",
}

DEV_BOOKS = (
    "darwin_the-voyage-of-the-beagle",
    "dickens_great-expectations",
    "hardy_the-return-of-the-native",
    "melville_moby-dick",
    "stoker_dracula",
)
# the first five of the other books by the md5 of their names
DEV2_BOOKS = (
    "gibbon_history-of-the-decline-and-fall-of-the-roman-empire-volume-1",
    "james_washington-square",
    "poe_the-works-of-edgar-allan-poe-volume-2",
    "scott_ivanhoe",
    "twain_life-on-the-mississippi",
)
# the first five of those that were then left, by the sha256 of their names: nobody's choice either
DEV3_BOOKS = (
    "alcott_an-old-fashioned-girl",
    "austen_emma",
    "collins_the-moonstone",
    "defoe_a-journal-of-the-plague-year",
    "doyle_a-study-in-scarlet",
)
# by the same sha256, the first five of prose by authors with no other book here; left out: one that data/settings was
# measured on (Jane Eyre), and one whose file has lost its quotation marks (The Story of an African Farm)
TEST_BOOKS = (
    "irving_the-sketch-book-of-geoffrey-crayon",
    "montgomery_anne-of-green-gables",
    "swift_gulliver-s-travels-into-several-remote-nations-of-the-world",
    "thackeray_the-history-of-henry-esmond",
    "wilde_the-picture-of-dorian-gray",
)
BOOKS: dict[Side, tuple[str, ...]] = {
    "dev": DEV_BOOKS,
    "dev2": DEV2_BOOKS,
    "dev3": DEV3_BOOKS,
    "test": TEST_BOOKS,
}
# what a sample's seed calls a side: dev3 draws what it drew as `test`, so that figures published then can be made again
_SEEDS: dict[Side, str] = {"dev3": "test", "test": "test3"}


def book_side(name: str) -> Side:
    """The side of a book by its file name without `.txt.gz`; a book that is not named above is for training."""
    return next((side for side, names in BOOKS.items() if name in names), "train")


def word_side(word: str) -> Side:
    """The side of a word, by the first byte of its md5: 28 % train, 19 % each dev side, 16 % test."""
    byte = hashlib.md5(word.encode()).digest()[0]
    if byte < 48:
        return "dev2"
    if byte < 96:
        return "dev"
    if byte < 144:
        return "dev3"
    return "test" if byte < 184 else "train"


def seed_name(side: Side) -> str:
    """The name of `side` in the seeds of its samples."""
    return _SEEDS.get(side, side)
