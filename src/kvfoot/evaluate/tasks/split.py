"""Who may see what: books, words and towns of the training side, of the development side, and of the test side.

`train` feeds training. `dev` is held out but looked at between runs. `test` is opened once, for a final checkpoint.
No book, word, town or phrasing belongs to two sides; tests/evaluate/test_sides.py checks it.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Side = Literal["train", "dev", "test"]
SIDES: tuple[Side, ...] = ("train", "dev", "test")

DEV_BOOKS = (
    "darwin_the-voyage-of-the-beagle",
    "dickens_great-expectations",
    "hardy_the-return-of-the-native",
    "melville_moby-dick",
    "stoker_dracula",
)
# the first five of the other books by the md5 of their names: nobody's choice
TEST_BOOKS = (
    "gibbon_history-of-the-decline-and-fall-of-the-roman-empire-volume-1",
    "james_washington-square",
    "poe_the-works-of-edgar-allan-poe-volume-2",
    "scott_ivanhoe",
    "twain_life-on-the-mississippi",
)


def book_side(name: str) -> Side:
    """The side of a book by its file name without `.txt.gz`; a book that is not named above is for training."""
    if name in DEV_BOOKS:
        return "dev"
    return "test" if name in TEST_BOOKS else "train"


def word_side(word: str) -> Side:
    """The side of a word: 62 % train, 19 % dev, 19 % test, by the first byte of its md5."""
    byte = hashlib.md5(word.encode()).digest()[0]
    if byte < 48:
        return "test"
    return "dev" if byte < 96 else "train"
