"""Work of a layer that nobody waits for before the next layer: beside the products in between (decision 0053).

Those stream weights, a choice is a chain of short launches that leave most of a GPU idle. In a recorded step the fork
and the join become edges of the graph.
"""

from collections.abc import Callable
from typing import Any

import torch

BESIDE = True
"""False: in line, for comparison. What it gains is not measured yet; `kvfoot bench kernels` times both (refresh)."""


class Aside:
    """One piece of work at a time on a stream of its own, where there are streams; else at once."""

    def __init__(self, device: torch.device):
        self.device = device
        self._stream: Any = None
        self._held: Callable[[], None] | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Until `settle` nobody may read what it writes, nor change what it reads. What it reads has to be held by
        `work` itself: memory that the step's own stream gives back is that stream's again at once.
        """
        self.settle()
        if self.device.type != "cuda" or not BESIDE:
            work()
            return
        if self._stream is None:  # first in line: its programs are few, and wait behind thousands of a product else
            self._stream = torch.cuda.Stream(self.device, priority=-1)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            work()
        self._held = work

    def settle(self) -> None:
        """What comes next in the step comes after it."""
        if self._held is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
            self._held = None
