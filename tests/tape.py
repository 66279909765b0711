"""A recorder for the CPU that does what a CUDA graph does: operations with their constants and addresses, no Python.

Recording notes every operation with its arguments. A replay runs them again, each into the memory of its first result;
what Python knew while recording (numbers, lists, branches) is as fixed as it is in a CUDA graph.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvfoot.engine.graph import WARM

REFUSED = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "lift_fresh",
    "is_nonzero",
    "equal",
    "_assert_async",
    "bincount",
)
"""Operations that read numbers on the host, make shapes of them, or bring host numbers to the device."""


class HostRead(AssertionError):
    """A step asked the device for a number, or brought one there."""


class NoHostReads(TorchDispatchMode):
    """Refuses what would wait for a device, were there one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in REFUSED:
            raise HostRead(f"a step calls {func}")
        if name == "repeat_interleave" and "output_size" not in str(func) and isinstance(args[-1], Tensor):
            raise HostRead(f"a step calls {func}, whose shape is data")
        if name in ("index", "index_put", "index_put_"):
            masks = [x for x in args[1] if isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)]
            if masks:
                raise HostRead(f"a step indexes by a mask, the shape of which is data: {func}")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """A `kvfoot.engine.graph.Recorder`."""

    made: "list[Tape]" = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor], bool]] = []
        self.replays = 0
        Tape.made.append(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        fresh = [x for x in results if x.untyped_storage().data_ptr() not in given]
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        if fresh or writes:
            self.calls.append((func, args, kwargs, results, bool(fresh)))
        return out

    def capture(self, run: Callable[[], None]) -> None:
        for _ in range(WARM):
            with NoHostReads():
                run()
        # Unlike a CUDA graph, recording here runs the step once more; the words are still those of an idle step.
        with self:
            run()

    @torch.inference_mode()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, results, fresh in self.calls:
            again = func(*args, **kwargs)
            if fresh:
                for old, new in zip(results, (x for x in tree_leaves(again) if isinstance(x, Tensor)), strict=True):
                    old.copy_(new)


class OneDevice(NoHostReads):
    """Refuses what brings numbers of the host to the device too: every tensor of a step lives there (here: "meta")."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        out = super().__torch_dispatch__(func, types, args, kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if any(x.device.type != "meta" for x in [*given, *made]):
            raise HostRead(f"a step calls {func} on {', '.join(str(x.device) for x in [*given, *made])}")
        return out


class NoLists(TorchFunctionMode):
    """Refuses indexing by lists and tensors made of numbers, which dispatch does not show: on a GPU they are copies."""

    MADE = ("tensor", "as_tensor", "new_tensor", "from_numpy", "asarray")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.MADE:
            raise HostRead(f"a step makes a tensor of numbers: {name}")
        if name in ("__getitem__", "__setitem__"):
            at = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(not isinstance(x, Tensor | slice | int | None | type(...)) for x in at):
                raise HostRead(f"a step indexes by {at}")
        return func(*args, **(kwargs or {}))


class Rerun:
    """A recorder that runs the step itself each time: for kernels that dispatch does not show."""

    def capture(self, run: Callable[[], None]) -> None:
        for _ in range(WARM):
            run()
        self.replay = run
