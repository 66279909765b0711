"""How many operations a step gives the device, counted on a CPU: a proxy of what a replay costs beside bytes."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import tiny
from kvfoot.attention import naive_layer, sdpa
from kvfoot.attention.emitted import Emitted
from kvfoot.attention.state import State
from kvfoot.core.budget import Budget
from kvfoot.core.hooks import Method
from kvfoot.engine.sampler import Sampling
from kvfoot.methods.read.refreshkv import best
from kvfoot.models.fusion import Fuse
from tape import Rerun

FREE = {"empty", "empty_strided", "empty_like", "new_empty", "detach", "alias"}
ATTENTION, CHOICE = 2, 4
"""Launches of the triton backend's decode (decode and merge; scan and lse), and of its choice of entries."""


class Launches(TorchDispatchMode):
    """Operations that write memory, by name; views and allocations are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        fresh = any(x.untyped_storage().data_ptr() not in given for x in tree_leaves(out) if isinstance(x, Tensor))
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        if name not in FREE and (fresh or writes):
            self.found[name] += 1
        return out

    def one(self, name: str, function: Any, launches: int = 1) -> Any:
        """The function as so many launches, whatever its definition takes."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.found[name] += launches
            with _disable_current_modes():
                return function(*args, **kwargs)

        return call


def _paged(q: Tensor, *given: Any, **named: Any) -> Any:
    """With an output in the queries' dtype, as the triton backend's is."""
    state, weights = sdpa.paged(q, *given, **named)
    return State(state.out.to(q.dtype), state.lse), weights


class Chosen(Emitted):
    """What a kernel chooses, by the definition in torch: so many launches, as `count` has it."""

    launches: Launches

    def best(self, count: int, kernel: int, group: Any, sink: int, leaving: int | None) -> Tensor | None:
        def choose() -> Tensor:
            newest = (self._lens - 1).clamp(min=0)[:, None]
            there = torch.arange(self._logits.shape[2]) < newest
            found = best(self.weights().masked_fill(~there[:, None], 0), count, kernel, group, sink, there)
            return torch.cat([found, newest], 1)

        found: Tensor = self.launches.one("choice", choose, CHOICE)()
        return found


def _emitted(count: Launches) -> Any:
    kind = type("Counted", (Chosen,), {"launches": count})

    def call(q: Tensor, *given: Any, **named: Any) -> Any:
        state, found = sdpa.emitted(q, *given, **named)
        return State(state.out.to(q.dtype), state.lse), kind(found._logits, found._lse, found._lens)

    return count.one("attention", call, ATTENTION)


@torch.inference_mode()
def of_a_step(
    kind: str, level: int, method: str | Method = "full", batch: int = 1, step: str = "quiet", page_size: int = 16,
    **mode: Any,
) -> tuple[Counter[str], int]:  # fmt: skip
    """Launches of a layer of a family's step, by name, and of everything but its layers. step: of a reader's kinds."""
    found = [_step(kind, layers, level, method, batch, step, page_size, mode) for layers in (2, 4)]
    layer = Counter({name: n // 2 for name, n in (found[1] - found[0]).items()})
    return layer, found[0].total() - 2 * layer.total()


def _step(
    kind: str, layers: int, level: int, method: str | Method, batch: int, step: str, page_size: int, mode: Any
) -> Counter[str]:
    count = Launches()
    names = ("rms_norm", "gated", "store", "project", "gated_project")
    kernels: Any = SimpleNamespace(**{name: count.one(name, getattr(naive_layer, name)) for name in names})
    backend = SimpleNamespace(**vars(sdpa))
    backend.paged, backend.emitted = count.one("attention", _paged, ATTENTION), _emitted(count)
    backend.refill = count.one("refill", sdpa.refill)
    backend.reach, backend.widen = count.one("reach", sdpa.reach), count.one("widen", sdpa.widen)
    more = {"no_rope_layers": [1] * layers} if kind == "smollm3" else {}
    model = tiny.make(kind, layers=layers, dtype=torch.bfloat16, **more)
    fuse = Fuse(kernels, level) if level else 0
    engine = tiny.Strict(model, backend=backend, graph=Rerun, fuse=fuse, page_size=page_size)
    chosen = engine.method(method)
    plan = engine.plan(chosen, Budget.of(**mode), 20, None, 8)
    runner = engine.runner([plan] * batch, 8)
    sequences = [runner.open(tiny.tokens(20), chosen, plan, Sampling(), i) for i in range(batch)]
    for s in sequences:
        s.tokens.append(int(runner.prefill(s).argmax()))
    assert runner.graphs is not None
    resident = runner.graphs.suiting(sequences, 8, Sampling())
    resident.attach(sequences)
    assert resident.ledger is not None
    resident.ledger.idle()
    if resident.lists is not None:
        resident.lists.steps[step] = 1 if step == "quiet" else chosen.every
    count.found.clear()
    with count:
        resident.run(step)
    return count.found
