"""Rows made by a thread while the step before them is computed. What is state is what was taken, not what was made."""

import queue
import threading
from typing import Any

from kvfoot.train.packing import Row, Source

DEPTH = 2
"""Batches that wait."""


class Ahead:
    """A source in batches of a fixed size; `restore` only before the first is taken."""

    def __init__(self, source: Source, batch: int):
        self._source, self._batch = source, batch
        self._state = source.state()
        self._made: queue.Queue[tuple[list[Row], dict[str, Any]] | Exception] = queue.Queue(DEPTH)
        self._thread: threading.Thread | None = None

    def take(self, count: int) -> list[Row]:
        """The next batch. Raises what the source raised."""
        assert count == self._batch
        if self._thread is None:
            self._thread = threading.Thread(target=self._make, daemon=True)
            self._thread.start()
        made = self._made.get()
        if isinstance(made, Exception):
            raise made
        rows, self._state = made
        return rows

    def state(self) -> dict[str, Any]:
        return self._state

    def restore(self, state: dict[str, Any]) -> None:
        assert self._thread is None
        self._source.restore(state)
        self._state = state

    def _make(self) -> None:
        try:
            while True:
                rows = self._source.take(self._batch)
                self._made.put((rows, self._source.state()))
        except Exception as error:  # goes to whoever takes next
            self._made.put(error)
