"""A sweep from its command to a full store: checks, workers, what they share, and what is left when one is killed."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfoot.core.errors import KvfootError, UsageError
from kvfoot.core.results import Cell
from kvfoot.evaluate import catalog
from kvfoot.evaluate.protocol import Task
from kvfoot.evaluate.store import Store
from kvfoot.evaluate.sweep import Sweep, Variant

if TYPE_CHECKING:
    from kvfoot.engine.engine import Engine

WAIT = 0.5
"""Seconds between looks at what other workers have finished."""
RESTARTS = 3
"""How often a killed worker of our own is replaced."""


@dataclass
class Bench:
    """A loaded engine, and the sweep's cells with their numbers in the store."""

    sweep: Sweep
    engine: "Engine"
    tasks: list[Task]
    cells: list[tuple[Cell, Variant]]


def prepare(sweep: Sweep, load: Callable[[Sweep], "Engine"] | None = None) -> Bench:
    """Everything that can be refused is refused here, before anything is written. Raises UsageError."""
    sweep.variants()
    tasks = catalog.find(sweep.tasks, sweep.data)
    from kvfoot.evaluate.encode import ask, counter

    engine = (load or load_engine)(sweep)
    if engine.tokenizer is None:
        raise UsageError(f"{sweep.model} has no tokenizer: tasks are texts")
    sweep.fits(engine.geometry)
    count = counter(engine.tokenizer)
    for task in tasks:
        for length in sweep.lengths or (0,):
            # the last one: a file that is too short, a length that is too small
            example = task.sample(sweep.samples - 1, length, sweep.seed, count)
            chat = sweep.chat if sweep.chat is not None else task.chat
            a = ask(engine.tokenizer, example, task.metric, chat, sweep.question)
            if not a.reference and example.score is None:
                raise UsageError(f"{task.name}: a sample has neither answers nor a score")
            for v in sweep.variants():
                engine.plan(v.method, v.budget, len(a.prompt), sweep.chunk, len(a.after) + a.limit)
    dtype = str(engine.dtype).removeprefix("torch.")
    return Bench(sweep, engine, tasks, sweep.cells(tasks, engine.revision, dtype))


def load_engine(sweep: Sweep) -> "Engine":
    from kvfoot.engine.engine import Engine

    return Engine.load(
        sweep.model, dtype=sweep.dtype, device=sweep.device, backend=sweep.backend, page_size=sweep.page_size
    )


def work(bench: Bench, store: Store, *, wait: bool = True, seconds: list[float] | None = None) -> None:
    """Run what is unfinished and unleased until nothing is. wait: also for what others hold a lease on.

    seconds: gets the model's own time appended.
    """
    from kvfoot.evaluate.worker import Job, Worker, block_size

    numbers = store.numbers([cell for cell, _ in bench.cells])
    worker = Worker(bench.engine, bench.sweep)
    tasks = {task.name: task for task in bench.tasks}
    places = groupby(range(len(numbers)), key=lambda i: (bench.cells[i][0].task, bench.cells[i][0].length))
    jobs = [(task, length, list(index)) for (task, length), index in places]
    while True:
        busy = False
        for task, length, index in jobs:
            own = {numbers[i]: place for place, i in enumerate(index)}
            while pairs := store.claim(list(own), bench.sweep.samples, block_size(bench.sweep, length)):
                cells, variants = [bench.cells[i][0] for i in index], [bench.cells[i][1] for i in index]
                job = Job(tasks[task], length, cells, variants, {(own[n], i) for n, i in pairs})
                back = {place: number for number, place in own.items()}
                try:
                    worker.run(job, lambda c, result, back=back: store.put(back[c], result))  # type: ignore[misc]
                finally:
                    store.give_back(pairs)
            busy = busy or len(store.finished(list(own), bench.sweep.samples)) < len(own) * bench.sweep.samples
        if not busy or not wait:
            break
        time.sleep(WAIT)
    if seconds is not None:
        seconds.append(worker.spent)


def run(
    sweep: Sweep, folder: Path, *, workers: int = 1, tell: Callable[[Store, list[int], Bench], Any] | None = None
) -> Bench:
    """The whole sweep into folder; `tell` is called over and over while it runs. Raises KvfootError."""
    bench = prepare(sweep)
    store = Store(folder)
    try:
        store.refuse_other_versions()
        numbers = store.numbers([cell for cell, _ in bench.cells])
        tell = tell or (lambda *_: None)
        if workers == 1:
            _alone(bench, store, numbers, tell)
        else:
            _several(bench, store, numbers, folder, workers, tell)
        tell(store, numbers, bench)
    finally:
        store.close()
    return bench


def _alone(bench: Bench, store: Store, numbers: list[int], tell: Callable[..., Any]) -> None:
    put = store.put

    def watched(number: int, result: Any) -> None:
        put(number, result)
        tell(store, numbers, bench)

    store.put = watched  # type: ignore[method-assign]
    try:
        work(bench, store)
    finally:
        store.put = put  # type: ignore[method-assign]


def _several(
    bench: Bench, store: Store, numbers: list[int], folder: Path, count: int, tell: Callable[..., Any]
) -> None:
    """Processes of our own on one store; one that is killed is replaced, its leases having ended with it."""
    spawn = multiprocessing.get_context("spawn")
    start = lambda: _started(spawn, bench.sweep, folder)  # noqa: E731
    live, restarts = [start() for _ in range(count)], 0
    try:
        while live:
            time.sleep(WAIT)
            tell(store, numbers, bench)
            for process in [p for p in live if not p.is_alive()]:
                live.remove(process)
                if process.exitcode and process.exitcode > 0:
                    raise KvfootError(f"a worker failed (exit code {process.exitcode}): its message is above")
                if process.exitcode:
                    restarts += 1
                    if restarts > RESTARTS:
                        raise KvfootError(f"workers were killed {restarts} times (signal {-process.exitcode})")
                    live.append(start())
    finally:
        for process in live:
            process.terminate()
        for process in live:
            process.join()


def _started(spawn: Any, sweep: Sweep, folder: Path) -> Any:
    process = spawn.Process(target=join, args=(sweep.plain(), str(folder)), daemon=True)
    process.start()
    return process


def join(plain: dict[str, Any], folder: str) -> None:
    """A worker process: its own engine, the sweep's store."""
    import sys

    try:
        store = Store(Path(folder))
        try:
            work(prepare(Sweep.of(plain)), store)
        finally:
            store.close()
    except KvfootError as error:
        print(f"kvfoot: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
