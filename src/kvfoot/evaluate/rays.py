"""A sweep over a Ray cluster: an actor per worker with an engine of its own; the database stays with the driver.

Actors hand finished samples over while they run: one that dies has cost its cell's time, and another takes its place.
"""

import threading
import time
from pathlib import Path
from typing import Any

from kvfoot.core.errors import KvfootError, UsageError
from kvfoot.core.results import SampleResult
from kvfoot.evaluate import catalog
from kvfoot.evaluate.drive import RESTARTS, WAIT, Bench, Block, Queue, Tell, prepare
from kvfoot.evaluate.store import Store
from kvfoot.evaluate.sweep import Sweep


class Actor:
    """What runs on a node."""

    def __init__(self, plain: dict[str, Any]):
        self._sweep = Sweep.of(plain)
        self._bench: Bench | None = None
        self._lock = threading.Lock()
        self._done: list[tuple[int, SampleResult]] = []

    def describe(self) -> tuple[str, str]:
        """Load the model: its revision and dtype."""
        bench = self._load()
        return bench.engine.revision, str(bench.engine.dtype).removeprefix("torch.")

    def run(self, block: Block) -> None:
        bench = self._load()
        bench.run(bench.worker(), block, self._put)

    def take(self) -> list[tuple[int, SampleResult]]:
        """What has been finished since the last call."""
        with self._lock:
            done, self._done = self._done, []
        return done

    def _put(self, place: int, result: SampleResult) -> None:
        with self._lock:
            self._done.append((place, result))

    def _load(self) -> Bench:
        if self._bench is None:
            self._bench = prepare(self._sweep)
        return self._bench


def run_on_ray(sweep: Sweep, folder: Path, address: str, workers: int, tell: Tell) -> None:
    """The whole sweep. address: of a cluster, or "local". Raises UsageError without the extra `ray`; KvfootError."""
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs the package ray: pip install 'kvfoot[ray]'") from None
    sweep.variants()
    tasks = catalog.find(sweep.tasks, sweep.data)
    try:
        ray.init(
            address=None if address == "local" else address,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"--ray {address}: {str(error).splitlines()[0]}") from None
    try:
        gpu = int(sweep.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)
        make = ray.remote(num_cpus=1, num_gpus=gpu, max_concurrency=2)(Actor)
        _Crew(ray, lambda: make.remote(sweep.plain()), sweep).run(tasks, folder, workers, tell)
    finally:
        ray.shutdown()


class _Crew:
    """Actors at work on one queue."""

    def __init__(self, ray: Any, start: Any, sweep: Sweep):
        self.ray, self.start, self.sweep = ray, start, sweep
        self.deaths = 0

    def run(self, tasks: list[Any], folder: Path, workers: int, tell: Tell) -> None:
        actors = [self.start()]
        revision, dtype = self._get(actors[0].describe.remote())
        actors += [self.start() for _ in range(workers - 1)]
        store = Store(folder)
        try:
            store.refuse_other_versions()
            self._work(Queue(store, self.sweep, self.sweep.cells(tasks, revision, dtype)), actors, tell)
        finally:
            store.close()

    def _work(self, queue: Queue, idle: list[Any], tell: Tell) -> None:
        busy: dict[Any, tuple[Any, Block]] = {}
        while not queue.complete:
            while idle and (block := queue.claim()):
                actor = idle.pop()
                busy[actor.run.remote(block)] = actor, block
            ended = self.ray.wait(list(busy), timeout=WAIT)[0] if busy else []
            if not busy:
                time.sleep(WAIT)
            for task, (actor, block) in list(busy.items()):
                try:
                    for place, result in self._get(actor.take.remote()):
                        queue.put(block, place, result)
                    if task in ended:
                        self._get(task)
                        for place, result in self._get(actor.take.remote()):
                            queue.put(block, place, result)
                    free = actor
                except self.ray.exceptions.RayActorError:
                    free, ended = self._replace(), [*ended, task]
                if task in ended:
                    queue.give_back(block)
                    del busy[task]
                    idle.append(free)
            tell(queue)

    def _replace(self) -> Any:
        self.deaths += 1
        if self.deaths > RESTARTS:
            raise KvfootError(f"Ray workers died {self.deaths} times: see ray's own logs")
        return self.start()

    def _get(self, reference: Any) -> Any:
        """The answer; our own errors as they were raised."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, KvfootError):
                raise error.cause from None
            raise
