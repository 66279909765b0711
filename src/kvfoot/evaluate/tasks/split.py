"""Who may see what: books, words and towns of the training side, of two development sides, and of the test side.

`train` feeds training. `dev` and `dev2` are held out but looked at between runs (`dev2` was the test side of the first
release). `test` is opened once, for a final checkpoint. No book, word, town or phrasing belongs to two sides;
tests/evaluate/test_sides.py checks it.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Side = Literal["train", "dev", "dev2", "test"]
SIDES: tuple[Side, ...] = ("train", "dev", "dev2", "test")

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
TEST_BOOKS = (
    "alcott_an-old-fashioned-girl",
    "austen_emma",
    "collins_the-moonstone",
    "defoe_a-journal-of-the-plague-year",
    "doyle_a-study-in-scarlet",
)
BOOKS: dict[Side, tuple[str, ...]] = {"dev": DEV_BOOKS, "dev2": DEV2_BOOKS, "test": TEST_BOOKS}


def book_side(name: str) -> Side:
    """The side of a book by its file name without `.txt.gz`; a book that is not named above is for training."""
    return next((side for side, names in BOOKS.items() if name in names), "train")


def word_side(word: str) -> Side:
    """The side of a word: 44 % train, the others 19 % each, by the first byte of its md5."""
    byte = hashlib.md5(word.encode()).digest()[0]
    if byte < 48:
        return "dev2"
    if byte < 96:
        return "dev"
    return "test" if byte < 144 else "train"
