"""Rows for benchmarks/gates_gpu.py: documents of kvfoot-recall's kind, and books, with passkeys or without."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvfoot.evaluate.tasks.corpus import Corpus, read_corpus
from kvfoot.train.packing import Packed, Row, encoder
from kvfoot.train.passkeys import Passkeys, PasskeyShape
from kvfoot.train.recall.feed import one_thread

Make = Callable[[int], Row]


def of_recall(data: Path, folder: Path, length: int) -> tuple[Make, Make]:
    """Rows of kvfoot-recall's own kind: all, and for DuoAttention those with answers, which are marked."""
    from tokenizers import Tokenizer

    from kvfoot.evaluate.tasks.wording_train import TrainWording
    from kvfoot.train.recall.books import encode_books
    from kvfoot.train.recall.mix import MAIN
    from kvfoot.train.recall.vocab import BOS
    from kvfoot.train.recall.writer import ANSWER, Writer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    corpus = read_corpus(data, "train")
    writer = Writer(tokenizer, encode_books(corpus.books, tokenizer), corpus, TrainWording())

    def make(number: int, answers: bool) -> Row:
        for attempt in range(100):
            made = writer.row(f"gates/{number}/{attempt}", length, MAIN)
            if not answers or (made.codes == ANSWER).any():
                break
        starts = sorted({0, *np.flatnonzero(made.tokens == BOS).tolist()})
        spans = tuple(zip(starts, [*starts[1:], length], strict=True))
        counted = torch.from_numpy(made.codes == ANSWER)
        return Row(torch.from_numpy(made.tokens.astype(np.int64)), spans, counted if answers else None)

    return partial(make, answers=False), partial(make, answers=True)


def of_books(
    data: Path, corpus: Corpus, tokenizer: Any, length: int, answers: bool, seed: int, count: int
) -> list[Row]:
    """Books in rows; answers: with passkeys."""
    files = [
        path for path in sorted((data / "books").glob("*.txt.gz")) if path.name.removesuffix(".txt.gz") in corpus.books
    ]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    text = Packed(files, encoder(tokenizer), length, seed=seed, begin=begin)
    return (Passkeys(text, PasskeyShape(), seed) if answers else text).take(count)


_make: Make | None = None
Plain = tuple[np.ndarray, tuple[tuple[int, int], ...], np.ndarray | None]


def _one(number: int) -> Plain:
    """A row without tensors: those would travel through /dev/shm, which is small in containers."""
    one_thread()
    assert _make is not None
    row = _make(number)
    return row.tokens.numpy(), row.spans, None if row.supervised is None else row.supervised.numpy()


def in_parallel(make: Make, numbers: list[int], workers: int) -> list[Row]:
    """Rows by forked processes, where CUDA has not been touched."""
    global _make  # noqa: PLW0603
    _make = make
    if workers < 2 or torch.cuda.is_initialized():
        return list(map(make, numbers))
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        found = pool.map(_one, numbers, chunksize=8)
    return [Row(torch.from_numpy(a), spans, None if b is None else torch.from_numpy(b)) for a, spans, b in found]
