"""States of readers as made of tensors: copied, joined over sequences, taken apart again, chosen between row by row.

A state is a tensor, a dataclass of tensors, or None. What is in it besides tensors stays as it is.
"""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def mapped(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The state with every tensor changed."""
    if isinstance(state, Tensor):
        return change(state)
    if is_dataclass(state) and not isinstance(state, type):
        inside = {f.name: getattr(state, f.name) for f in fields(state)}
        return replace(state, **{name: mapped(x, change) for name, x in inside.items() if isinstance(x, Tensor)})
    return state


def tensors(state: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    mapped(state, note)
    return found


def shapes(state: Any) -> tuple[torch.Size, ...]:
    return tuple(x.shape for x in tensors(state))


def copy(target: Any, source: Any) -> None:
    for to, new in zip(tensors(target), tensors(source), strict=True):
        if new is not to and to.numel():
            to.copy_(new)


def joined(states: Many[Any]) -> Any:
    """States of several sequences as one, in memory of its own."""
    if len(states) == 1:
        return mapped(states[0], lambda x: x.clone())
    columns = iter(zip(*(tensors(state) for state in states), strict=True))
    return mapped(states[0], lambda _: torch.cat(next(columns)))


def part(state: Any, index: int, count: int) -> Any:
    """The state of the index-th of `count` sequences, a view."""
    return state if count == 1 else mapped(state, lambda x: x.chunk(count)[index])


def chosen(fired: Tensor, sequences: int, new: Any, old: Any) -> Any:
    """Row by row of bool [rows]; a line of a sequence, or what has none, follows its first row: they fire together."""
    if old is None:
        return new
    others = iter(tensors(old))

    def pick(x: Tensor) -> Tensor:
        rows = x.ndim > 0 and len(x) == len(fired)
        mask = fired if rows else fired.unflatten(0, (sequences, -1))[:, 0]
        mask = mask.view(-1, *[1] * (x.ndim - 1)) if x.ndim else mask[0]
        return torch.where(mask, x, next(others))

    return mapped(new, pick)


def without(state: Any, names: Many[str]) -> Any:
    """The state, these fields None."""
    return state if state is None or not names else replace(state, **dict.fromkeys(names))
