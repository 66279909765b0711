"""A layer's refresh, launch by launch: chains that grow by a link, each all layers of a step in one CUDA graph.

What a link costs is what its chain takes beyond the one before: logits are then as far from a program as in a step,
and the wait between two launches is counted. Beside the products of a layer, a choice may cost less than in line: the
last chains say how much (decision 0053).
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import linear

from kvfoot.attention.rings import Rings
from kvfoot.attention.triton import rings, select, topk
from kvfoot.attention.triton.decode import decode, planned
from kvfoot.attention.triton.emitted import Emitted, emitted
from kvfoot.attention.triton.project import gated_project, project
from kvfoot.bench.kernel_rows import BF16, DIM, GROUP, HEADS, Step, captured
from kvfoot.bench.measure import milliseconds
from kvfoot.engine.aside import Aside

HIDDEN, INNER = HEADS * GROUP * DIM, 14336
EVERY, KERNEL, SHARE = 12, 7, 8
"""Of the refreshes: steps between two, entries that are pooled, and which part of a row is read."""
CHOICE = [(select, "keys_kernel"), (topk, "narrow_kernel"), (topk, "bracket_kernel"), (topk, "place_kernel")]
Link = Callable[[int], object]


class Absent:
    """In the place of a kernel that a chain does not reach."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *_, **__: None


class Layers:
    """The links of a refresh of every layer of a step, K an eighth of its rows."""

    def __init__(self, step: Step, repeat: int):
        self.step, self.repeat, (self.layers, self.rows) = step, repeat, step.lens.shape
        self.width = step.table.shape[2] * step.k.shape[1]
        self.count = int(step.lens.min()) // SHARE
        device = self.device = step.k.device
        self.plan = planned(step.lens, DIM, BF16)
        self.rings = Rings.empty(self.layers, self.rows, self.count + 1, device)
        self.rings.width.fill_(self.count + 1)
        self.own = torch.arange(self.rows, device=device)
        self.fired = torch.ones(self.rows, dtype=torch.bool, device=device)
        self.counts = torch.full((self.layers, self.rows), self.count, dtype=torch.int32, device=device)
        self.listed = planned(self.counts, DIM, BF16)
        self.found: dict[int, Emitted] = {}
        self.chosen: dict[int, Tensor] = {}
        for layer in range(self.layers):
            self.emit(layer, values=False)
            self.choose(layer)
            self.refill(layer)

    def given(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
        step = self.step
        return step.q[layer], step.k, step.v, step.table[layer], step.lens[layer], DIM**-0.5

    def decode(self, layer: int) -> None:
        decode(*self.given(layer), plan=self.plan.layer(layer))

    def emit(self, layer: int, values: bool) -> None:
        self.found.clear()
        self.found[layer] = emitted(*self.given(layer), plan=self.plan.layer(layer), values=values)[1]

    def choose(self, layer: int) -> None:
        chosen = self.found[layer].best(self.count - 1, KERNEL, "max", 0, EVERY)
        assert chosen is not None
        self.chosen = {layer: chosen}

    def refill(self, layer: int) -> None:
        page = self.step.k.shape[1]
        rings.refill(self.rings, layer, self.own, self.chosen[layer], self.fired, self.step.table[layer], page)

    def read(self, layer: int) -> None:
        """What is chosen, as a quiet step does it too."""
        k, v = (x.view(-1, 1, DIM) for x in (self.step.k, self.step.v))
        slots, counts = self.rings.slot[layer], self.counts[layer]
        decode(self.step.q[layer], k, v, slots, counts, DIM**-0.5, plan=self.listed.layer(layer))

    def products(self, hidden: int, inner: int) -> Link:
        """Of a layer, by the kernels for a single token or by torch: two layers' weights, which no cache holds."""
        batch, small = -(-self.rows // HEADS), hidden // GROUP

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, device=self.device).to(BF16)

        x, y = drawn(1, batch, hidden), drawn(1, batch, inner)
        both = [
            [drawn(n, m) for n, m in ((hidden, hidden), (small, hidden), (small, hidden), (hidden, hidden))]
            + [drawn(inner, hidden), drawn(inner, hidden), drawn(hidden, inner)]
            for _ in range(2)
        ]

        def run(layer: int) -> None:
            q, k, v, o, gate, up, down = both[layer % 2]
            if batch == 1:
                project(x, (q, k, v), None)
                project(x, (o,), None)
                gated_project(x, gate, up)
                project(y, (down,), None)
            else:
                for weight in (q, k, v, o, gate, up):
                    linear(x, weight)
                linear(y, down)

        return run

    def timed(self, links: Many[Link], reach: int = len(CHOICE), end: Callable[[], None] = lambda: None) -> float:
        """Microseconds a layer; reach: kernels of the choice that are there."""

        def run() -> None:
            for layer in range(self.layers):
                for link in links:
                    link(layer)
            end()

        with ExitStack() as stack:
            for module, name in CHOICE[reach:]:
                stack.enter_context(patch.object(module, name, Absent()))
            replay = captured(run).replay if self.device.type == "cuda" else run
            return milliseconds(replay, self.device, self.repeat, min(self.repeat - 1, 3)) * 1e3 / self.layers


def refresh(step: Step, hidden: int = HIDDEN, inner: int = INNER, repeat: int = 10) -> Iterator[dict[str, Any]]:
    """Microseconds a layer of each chain, and what its last link adds."""
    layers = Layers(step, repeat)
    plain = layers.timed([layers.decode])
    yield line("decode", "decode, merge", plain)
    yield line("list", "decode, merge", layers.timed([layers.read]))
    for chain, values in (("full", True), ("score_only", False)):
        links: list[Link] = [partial(layers.emit, values=values)]
        last = layers.timed(links)
        yield line(chain, "emitting" if values else "scan, lse", last, plain if values else 0.0)
        links.append(layers.choose)
        for reach, (_, name) in enumerate(CHOICE, 1):
            before, last = last, layers.timed(links, reach)
            yield line(chain, name.removesuffix("_kernel"), last, before)
        for link in (layers.refill, layers.read)[: 1 if values else 2]:
            links.append(link)
            before, last = last, layers.timed(links)
            yield line(chain, link.__name__, last, before)
    yield from _beside(layers, layers.products(hidden, inner))


def line(chain: str, link: str, us: float, before: float = 0.0) -> dict[str, Any]:
    return {"chain": chain, "link": link, "us": us, "adds": us - before}


def _beside(layers: Layers, products: Link) -> Iterator[dict[str, Any]]:
    """With the products of a layer behind it: no choice, one in line, one aside, as a step has it."""
    aside, emit = Aside(layers.device), partial(layers.emit, values=True)

    def begin(layer: int) -> None:
        def work(held: Emitted) -> None:
            layers.found[layer] = held
            layers.choose(layer)
            layers.refill(layer)

        aside.run(partial(work, layers.found.pop(layer)))

    def wait(layer: int) -> None:
        aside.settle()

    alone = layers.timed([emit, products])
    yield line("products", "no choice", alone)
    yield line("products", "choice in line", layers.timed([emit, layers.choose, layers.refill, products]), alone)
    yield line("products", "choice aside", layers.timed([wait, emit, begin, products], end=aside.settle), alone)
