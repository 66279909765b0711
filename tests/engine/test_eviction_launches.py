"""What an eviction costs a replayed step, in operations a layer: the figures of decision 0052."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import tiny
from kvfoot.core.budget import Budget
from kvfoot.core.ranking import Mass
from kvfoot.engine.resident import QUIET, Resident
from kvfoot.engine.sampler import Sampling
from tape import Tape

VIEWS = {
    "view",
    "_unsafe_view",
    "slice",
    "unsqueeze",
    "select",
    "expand",
    "permute",
    "transpose",
    "t",
    "alias",
    "split",
}
KERNELS = ("paged", "move", "replace", "tally")
"""One launch each on the triton backend, whatever they are in plain torch; `paged` of every method alike."""


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(name: str, options: dict[str, Any], mode: dict[str, Any], layers: int) -> int:
    """Of one step, views not counted."""
    engine = tiny.Strict(tiny.make("llama", layers=layers), page_size=4, graph=Tape)
    chosen = engine.method(name, options)
    plan = engine.plan(chosen, Budget.of(**mode), 61, 20, 8)
    runner = engine.runner([plan], 8)
    sequence = runner.open(tiny.tokens(61), chosen, plan, Sampling(), 0)
    runner.prefill(sequence)
    sequence.tokens.append(3)
    assert runner.graphs is not None
    resident = runner.graphs.suiting([sequence], 8, Sampling())
    resident.attach([sequence])
    backend, count = resident.backend, Count()

    def whole(kernel: str) -> Any:
        def run(*args: Any, **more: Any) -> Any:
            count.calls[kernel] += 1
            with _disable_current_modes():
                return getattr(backend, kernel)(*args, **more)

        return run

    more = {kernel: whole(kernel) for kernel in KERNELS}
    resident.backend = SimpleNamespace(planned=backend.planned, **more)  # type: ignore[assignment]
    with torch.inference_mode(), count:
        resident.run(QUIET)
    return sum(n for call, n in count.calls.items() if call not in VIEWS)


def a_layer(name: str, options: dict[str, Any], mode: dict[str, Any]) -> int:
    two, four = (operations(name, options, mode, layers) for layers in (2, 4))
    assert (four - two) % 2 == 0
    return (four - two) // 2


@pytest.mark.parametrize(
    ("name", "options", "mode", "count"),
    [
        ("streaming", {"sink": 2}, {"keep": 0.5}, 1),
        ("heads", {"roles": "streaming", "sink": 2, "window": 6}, {}, 1),
        ("h2o", {}, {"keep": 0.5}, 2),
        ("h2o", {"group": "max"}, {"keep": 0.5}, 2),
        ("tova", {}, {"keep": 0.5}, 2),
        ("random", {"window": 3}, {"budget": 24}, 36),
        ("snapkv", {"window": 3, "kernel": 3}, {"budget": 24}, 33),
    ],
)
def test_operations_a_layer(name: str, options: dict[str, Any], mode: dict[str, Any], count: int) -> None:
    """Beside a method whose rows only grow: move; tally and replace; or what a method computes, and replace."""
    grows = a_layer("snapkv", {"window": 4}, {"keep": 0.5})
    assert a_layer(name, options, mode) - grows == count


@pytest.mark.parametrize(
    ("limits", "plane", "served"), [([[9, 9]], None, True), ([[9, 8]], None, False), ([[9, 8]], "mass", True)]
)
def test_one_entry_for_all_rows_wants_rows_of_one_length(
    limits: list[list[int]], plane: str | None, served: bool
) -> None:
    """TOVA's ranking, declared by a method whose heads keep unlike numbers: the method is asked."""
    resident: Any = SimpleNamespace(limits=np.array([limits]))
    assert Resident._serves(resident, Mass(plane)) is served
