"""Linear modules whose products of one token share a launch: which may, and what stands in for their forwards."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kvfoot.attention.naive_layer import OUTPUTS
from kvfoot.models import known

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def joined(modules: Sequence[Any]) -> bool:
    """Whether they are plain linear modules of one input, with a bias each or none, that the kernel serves."""
    if any(type(m) is not nn.Linear or "forward" in vars(m) for m in modules):
        return False
    first = modules[0].weight
    return all(
        whole(m.weight)
        and m.weight.dtype == first.dtype in DTYPES
        and m.weight.device == first.device
        and m.in_features == modules[0].in_features
        and m.in_features % 8 == m.out_features % OUTPUTS == 0
        and m.weight.is_contiguous()
        and (m.bias is None) == (modules[0].bias is None)
        for m in modules
    )


def whole(weight: Tensor) -> bool:
    """Whether a kernel may read it by its address: torch's quantised and divided weights are parameters of classes of
    their own, in modules that are plain.
    """
    return type(weight) in (Tensor, nn.Parameter)


def halves(linears: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
    """The weights of gate and up, of two modules or of one for both; None where the kernel does not serve them.

    Modules with hooks would not be called: they are left to the model.
    """
    if any(known.hooked(m) for m in linears) or not joined(linears) or linears[0].bias is not None:
        return None
    gate, up = linears[0].weight.chunk(2) if len(linears) == 1 else (m.weight for m in linears)
    return (gate, up) if len(gate) == len(up) and len(gate) % OUTPUTS == 0 else None


def one_token(x: Tensor, weight: Tensor) -> bool:
    return x.numel() == weight.shape[1] and x.dtype == weight.dtype and x.is_contiguous()


def together(kernels: Any, modules: Sequence[Any]) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Forwards of modules that get the same input: the first call computes all, each result is given once."""
    source: list[Any] = [None]
    results: list[Tensor | None] = [None] * len(modules)

    def forward_of(i: int, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if not one_token(x, modules[i].weight):
                return own(x)
            if source[0] is not x or results[i] is None:
                biases = None if modules[0].bias is None else [m.bias for m in modules]
                source[0], results[:] = x, kernels.project(x, [m.weight for m in modules], biases)
            found, results[i] = results[i], None
            assert found is not None
            return found

        return forward

    return [(module, forward_of(i, module.forward)) for i, module in enumerate(modules)]
