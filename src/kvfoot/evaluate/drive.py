"""A sweep from its command to a full store: what is refused, who works on what, and who is replaced when killed."""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfoot.core.errors import KvfootError, UsageError
from kvfoot.core.results import Cell, SampleResult
from kvfoot.evaluate import catalog
from kvfoot.evaluate.protocol import Task
from kvfoot.evaluate.store import Pair, Store
from kvfoot.evaluate.sweep import Sweep, Variant, block_size

if TYPE_CHECKING:
    from kvfoot.engine.engine import Engine
    from kvfoot.evaluate.worker import Worker

WAIT = 0.5
"""Seconds between looks at what other workers have finished."""
RESTARTS = 3
"""How often killed workers of our own are replaced."""

Cells = Sequence[tuple[Cell, Variant]]
Tell = Callable[["Queue"], Any]
"""Is shown the queue, over and over, and once more when it is complete."""


@dataclass(frozen=True)
class Block:
    """Leased samples of one task and length. places: its cells among the sweep's; wanted: (place in places, index)."""

    task: str
    length: int
    places: tuple[int, ...]
    wanted: frozenset[Pair]


class Queue:
    """A sweep's cells in a store, and its unfinished samples block by block."""

    def __init__(self, store: Store, sweep: Sweep, cells: Cells):
        self.store, self.sweep, self.cells = store, sweep, cells
        self.numbers = store.numbers([cell for cell, _ in cells])
        kinds = groupby(range(len(cells)), key=lambda i: (cells[i][0].task, cells[i][0].length))
        self._kinds = [(task, length, tuple(places)) for (task, length), places in kinds]

    def claim(self) -> Block | None:
        """The next block that is neither done nor leased."""
        for task, length, places in self._kinds:
            own = [self.numbers[i] for i in places]
            pairs = self.store.claim(own, self.sweep.samples, block_size(self.sweep, length))
            if pairs:
                return Block(task, length, places, frozenset((own.index(n), i) for n, i in pairs))
        return None

    def put(self, block: Block, place: int, result: SampleResult) -> None:
        self.store.put(self.numbers[block.places[place]], result)

    def give_back(self, block: Block) -> None:
        """End what is left of its leases."""
        self.store.give_back([(self.numbers[block.places[c]], i) for c, i in block.wanted])

    @property
    def complete(self) -> bool:
        """Whether every sample of every cell is there, whoever ran it."""
        finished = self.store.progress(self.numbers, self.sweep.samples)
        return sum(n for n, _ in finished.values()) == len(self.numbers) * self.sweep.samples


@dataclass
class Bench:
    """A loaded engine, and the sweep's tasks and cells."""

    sweep: Sweep
    engine: "Engine"
    tasks: list[Task]
    cells: Cells

    def worker(self) -> "Worker":
        from kvfoot.evaluate.worker import Worker

        return Worker(self.engine, self.sweep)

    def run(self, worker: "Worker", block: Block, put: Callable[[int, SampleResult], None]) -> None:
        from kvfoot.evaluate.worker import Job

        task = next(t for t in self.tasks if t.name == block.task)
        cells, variants = zip(*(self.cells[i] for i in block.places), strict=True)
        worker.run(Job(task, block.length, cells, variants, set(block.wanted)), put)


def prepare(sweep: Sweep, engine: "Engine | None" = None) -> Bench:
    """Everything that can be refused is refused here, before anything is written. Raises UsageError."""
    variants = sweep.variants()
    tasks = catalog.find(sweep.tasks, sweep.data)
    from kvfoot.engine.engine import Engine
    from kvfoot.evaluate.encode import ask, counter, without_template

    engine = engine or Engine.load(
        sweep.model,
        dtype=sweep.dtype,
        device=sweep.device,
        backend=sweep.backend,
        page_size=sweep.page_size,
        kv_memory=sweep.kv_memory,
    )
    if engine.tokenizer is None:
        raise UsageError(f"{sweep.model} has no tokenizer, and tasks are texts")
    sweep.fits(engine.geometry)
    count = counter(engine.tokenizer)
    for task in tasks:
        for length in sweep.lengths or (0,):
            # the last one: a file that is too short, a length that is too small or too large
            room = without_template(engine.tokenizer, length, sweep.chats(task))
            example = task.sample(sweep.samples - 1, room, sweep.seed, count)
            a = ask(engine.tokenizer, example, task.metric, sweep.chats(task), sweep.question)
            if not a.reference and example.score is None:
                raise UsageError(f"{task.name}: a sample has neither answers nor a score")
            try:
                json.dumps(dict(example.figures))
            except TypeError as error:
                raise UsageError(f"{task.name}: the figures of a sample are not plain JSON: {error}") from None
            for v in variants:
                engine.plan(engine.method(v.method), v.budget, len(a.prompt), sweep.chunk, a.room)
    return Bench(sweep, engine, tasks, sweep.cells(tasks, engine.revision, str(engine.dtype).removeprefix("torch.")))


def work(bench: Bench, store: Store, tell: Tell | None = None) -> "Worker":
    """Run what is unfinished and unleased until everything is there, also what others work on."""
    queue, worker = Queue(store, bench.sweep, bench.cells), bench.worker()
    while not queue.complete:
        block = queue.claim()
        if block is None:
            time.sleep(WAIT)
        else:
            _run(bench, queue, worker, block, tell)
        if tell is not None:
            tell(queue)
    return worker


def _run(bench: Bench, queue: Queue, worker: "Worker", block: Block, tell: Tell | None) -> None:
    def put(place: int, result: SampleResult) -> None:
        queue.put(block, place, result)
        if tell is not None:
            tell(queue)

    try:
        bench.run(worker, block, put)
    finally:
        queue.give_back(block)


def run(sweep: Sweep, folder: Path, *, workers: int = 1, tell: Tell | None = None) -> None:
    """The whole sweep into folder, which is made once nothing is left to refuse. Raises KvfootError."""
    bench = prepare(sweep)
    store = Store(folder)
    try:
        store.refuse_other_versions()
        if workers == 1:
            work(bench, store, tell)
        else:
            _several(Queue(store, sweep, bench.cells), folder, workers, tell or (lambda _: None))
    finally:
        store.close()


def _several(queue: Queue, folder: Path, count: int, tell: Tell) -> None:
    """Processes of our own on one store; one that is killed is replaced, its leases having ended with it."""
    spawn = multiprocessing.get_context("spawn")

    def start() -> Any:
        process = spawn.Process(target=join, args=(queue.sweep.plain(), str(folder), count), daemon=True)
        process.start()
        return process

    live, restarts = [start() for _ in range(count)], 0
    try:
        while live:
            time.sleep(WAIT)
            tell(queue)
            for process in [p for p in live if not p.is_alive()]:
                live.remove(process)
                if process.exitcode > 0:
                    raise KvfootError(f"a worker failed with exit code {process.exitcode}: it has said why")
                if process.exitcode < 0:
                    restarts += 1
                    if restarts > RESTARTS:
                        raise KvfootError(f"workers were killed {restarts} times, last by signal {-process.exitcode}")
                    live.append(start())
        tell(queue)
    finally:
        for process in live:
            process.terminate()
        for process in live:
            process.join()


def join(plain: dict[str, Any], folder: str, workers: int = 1) -> None:
    """A worker process: an engine of its own, the sweep's store, its share of the processor."""
    import os

    import torch

    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // workers)))
    try:
        store = Store(Path(folder), create=False)
        try:
            work(prepare(Sweep.of(plain)), store)
        finally:
            store.close()
    except KvfootError as error:
        print(f"kvfoot: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
