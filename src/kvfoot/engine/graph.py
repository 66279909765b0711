"""A callable recorded once on the device and run again from there, over the memory that it was recorded with."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from kvfoot.core.errors import UsageError

WARM = 2
"""Runs before the recording: kernels are compiled, libraries take their workspaces."""
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes that are recorded; a batch is padded with idle sequences to the next one."""


class Recorder(Protocol):
    """What a step is recorded with. `run` takes everything from memory that does not move, and leaves all there."""

    def capture(self, run: Callable[[], None]) -> None:
        """Run it `WARM` times, then record it, without effect; what `run` reads has to allow that."""
        ...

    def replay(self) -> None: ...


Record = Callable[[], Recorder]


class CudaGraph:
    """A CUDA graph with a private pool, which the graphs of one `Pool` share: they never run at the same time."""

    def __init__(self, device: torch.device, pool: Any = None):
        self.device, self.pool = device, pool
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, run: Callable[[], None]) -> None:
        """Raises UsageError for a model with an operation that CUDA does not record."""
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            try:
                # Other threads (a listener's, a server's) may go on calling CUDA while this one records.
                with torch.cuda.graph(self.graph, pool=self.pool, stream=side, capture_error_mode="thread_local"):
                    run()
            except RuntimeError as error:
                why = str(error).strip().splitlines()[0]
                raise UsageError(f"a decode step of this model cannot be recorded ({why}): set graph=False") from error

    def replay(self) -> None:
        self.graph.replay()


def cuda_recorder(device: torch.device) -> Record:
    """Recorders for one device whose graphs share their memory: each `Graphs` has its own, since the memory of graphs
    that are all gone cannot be shared again.
    """
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(device, pool)


def bucket(sequences: int) -> int:
    """The least recorded batch size that holds them."""
    return next((size for size in BUCKETS if size >= sequences), -(-sequences // 128) * 128)
