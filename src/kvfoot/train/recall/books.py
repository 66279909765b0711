"""Books as token arrays, with the places between two sentences where an item can be put."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
from bisect import bisect_right
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kvfoot.core.errors import UsageError
from kvfoot.train.recall.vocab import SPECIALS

Tokens = NDArray[np.uint16]
_MARKS = (".", "!", "?", '."', '!"', '?"', ".”", "!”", "?”")


@dataclass(frozen=True)
class TokenBooks:
    """Token arrays by name; `breaks` are the indices at which a sentence begins."""

    tokens: dict[str, Tokens]
    breaks: dict[str, NDArray[np.int32]]

    def window(self, rng: random.Random, count: int) -> tuple[Tokens, NDArray[np.int32]]:
        """`count` tokens of one book from a sentence's start, and the sentence starts inside."""
        names = sorted(name for name, tokens in self.tokens.items() if len(tokens) > count + 64)
        if not names:
            raise UsageError(f"no training book has {count} tokens in a row; use longer books or shorter contexts")
        ends = list(itertools.accumulate(len(self.tokens[name]) for name in names))
        name = names[bisect_right(ends, rng.randrange(ends[-1]))]
        tokens, breaks = self.tokens[name], self.breaks[name]
        start = int(breaks[rng.randrange(len(breaks))]) if len(breaks) else 0
        if start + count > len(tokens):
            start = rng.randrange(len(tokens) - count)
        low, high = np.searchsorted(breaks, (start, start + count))
        return tokens[start : start + count], breaks[low:high] - start


def _break_tables(tokenizer: Tokenizer) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tokens begin a sentence (a space and a capital), which end one."""
    size = tokenizer.get_vocab_size()
    begins, ends = np.zeros(size, bool), np.zeros(size, bool)
    for token in range(len(SPECIALS), size):
        text = tokenizer.decode([token])
        begins[token] = len(text) > 1 and text[0] == " " and text[1].isupper()
        ends[token] = text.strip() in _MARKS
    return begins, ends


_shared: dict[str, Tokenizer] = {}


def _encode(job: tuple[str, str, str]) -> tuple[str, Tokens]:
    name, text, source = job
    if multiprocessing.parent_process() is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if source not in _shared:
        _shared[source] = Tokenizer.from_str(source)
    tokenizer = _shared[source]
    newline = tokenizer.encode("\n").ids
    parts = [encoding.ids + newline for encoding in tokenizer.encode_batch_fast(text.split("\n"))]
    return name, np.array(list(itertools.chain.from_iterable(parts)), np.uint16)


def encode_books(texts: Mapping[str, str], tokenizer: Tokenizer, processes: int = 1) -> TokenBooks:
    """Every book in tokens. `processes` > 1 forks that many; call it before CUDA is touched."""
    source = tokenizer.to_str()
    jobs = [(name, text, source) for name, text in sorted(texts.items())]
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            tokens = dict(pool.map(_encode, jobs))
    else:
        tokens = dict(map(_encode, jobs))
    begins, ends = _break_tables(tokenizer)
    breaks = {
        name: (np.flatnonzero(begins[ids[1:]] & ends[ids[:-1]]) + 1).astype(np.int32) for name, ids in tokens.items()
    }
    return TokenBooks(tokens, breaks)
