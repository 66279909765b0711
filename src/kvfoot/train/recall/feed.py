"""Worker processes that write batches ahead of the trainer. Batch `step` is the same whoever writes it, and when."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from typing import NamedTuple

import numpy as np
import torch

from kvfoot.train.recall.plan import Plan
from kvfoot.train.recall.writer import Row, Writer

AHEAD = 12  # batches requested before they are needed


def one_thread() -> None:
    """For a forked process: torch and tokenizers must not wait for threads that only the parent has."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


class Batch(NamedTuple):
    """tokens and codes [rows, length]; group [rows]: the group of families of each row."""

    tokens: torch.Tensor
    codes: torch.Tensor
    group: torch.Tensor


def write_part(writer: Writer, plan: Plan, step: int, part: int) -> list[Row]:
    """The rows of one part of a batch: a function of (seed, step, part)."""
    recipe, now = plan.recipe, plan.at(step)
    rows = recipe.batch // recipe.parts // now.length
    return [
        writer.row(f"row/{recipe.seed}/{step}/{part}/{row}", now.length, now.mix, recipe.whole) for row in range(rows)
    ]


def join(parts: list[list[Row]], pin: bool) -> Batch:
    rows = [row for part in parts for row in part]
    tokens = torch.from_numpy(np.stack([row.tokens for row in rows]).astype(np.int32))
    codes = torch.from_numpy(np.stack([row.codes for row in rows]))
    group = torch.tensor([row.group for row in rows])
    return Batch(tokens.pin_memory(), codes.pin_memory(), group.pin_memory()) if pin else Batch(tokens, codes, group)


def _work(writer: Writer, plan: Plan, asked: multiprocessing.Queue, made: multiprocessing.Queue) -> None:
    one_thread()
    while True:
        step, part = asked.get()
        made.put((step, part, write_part(writer, plan, step, part)))


class Feed:
    """Batches from `first` on, in order. With no workers they are written when asked for (tests)."""

    def __init__(self, writer: Writer, plan: Plan, first: int, workers: int) -> None:
        self.writer, self.plan, self.step, self.workers = writer, plan, first, workers
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self.ready: queue.Queue[Batch] = queue.Queue(4)
        if not workers:
            return
        context = multiprocessing.get_context("fork")
        self.asked, self.made = context.Queue(), context.Queue()
        for _ in range(workers):
            process = context.Process(target=_work, args=(writer, plan, self.asked, self.made), daemon=True)
            process.start()
            self.processes.append(process)

    def start(self, pin: bool) -> None:
        """Begin to write. Forking is done, so CUDA may be used from here on."""
        self.pin = pin
        if self.workers:
            threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        parts = self.plan.recipe.parts
        waiting: dict[int, dict[int, list[Row]]] = {}
        asked = self.step
        for step in range(self.step, self.plan.steps):
            while asked < min(step + AHEAD, self.plan.steps):
                for part in range(parts):
                    self.asked.put((asked, part))
                asked += 1
            while len(waiting.get(step, ())) < parts:
                number, part, rows = self.made.get()
                waiting.setdefault(number, {})[part] = rows
            done = waiting.pop(step)
            self.ready.put(join([done[part] for part in range(parts)], self.pin))

    def next(self) -> Batch:
        """The next batch, in the order of steps."""
        if self.workers:
            return self.ready.get()
        parts = [write_part(self.writer, self.plan, self.step, part) for part in range(self.plan.recipe.parts)]
        self.step += 1
        return join(parts, False)

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
