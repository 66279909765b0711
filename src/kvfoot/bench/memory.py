"""Whether a benchmark fits, said before anything is allocated."""

from collections.abc import Mapping

import torch

from kvfoot.cache.memory import free
from kvfoot.core.errors import UsageError


def fits(parts: Mapping[str, int], device: torch.device) -> bool:
    """Whether the sum of `parts`, bytes by what they are for, is free."""
    return sum(parts.values()) <= free(device)


def require(parts: Mapping[str, int], device: torch.device) -> None:
    """Raises UsageError unless the sum of `parts`, bytes by what they are for, is free."""
    there, needed = free(device), sum(parts.values())
    if needed > there:
        each = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
        raise UsageError(
            f"{gib(needed)} of memory are needed ({each}) and {gib(there)} are free on {device}: give a smaller "
            "--context, --batch, --keep or --model-shape, or measure fewer sides (--beside none)"
        )


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
