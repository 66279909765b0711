"""Two gloo processes on the CPU, as torchrun starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

CODE = """
import importlib, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import torch
from kvfoot.train.world import world
run = getattr(importlib.import_module(sys.argv[3]), sys.argv[4])
with world(torch.device("cpu")) as both:
    run(Path(sys.argv[5]), both)
"""


class Two:
    """`module.function(out, world)` of a test file in this folder, begun in two processes."""

    def __init__(self, module: str, function: str, out: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        here = Path(__file__).parent
        command = [sys.executable, "-c", CODE, str(here), str(here.parent), module, function, str(out)]
        whole = os.environ | {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        self.processes = [subprocess.Popen(command, env=whole | {"RANK": str(rank)}) for rank in range(2)]

    def wait(self) -> None:
        """Both have ended well."""
        assert [p.wait(timeout=300) for p in self.processes] == [0, 0]
