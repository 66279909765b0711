"""Muon (orthogonalised momentum) for the matrices, stacked by shape; Adam for the embedding and the norms."""

from __future__ import annotations

import torch


def orthogonal(gradient: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """[S, rows, columns] -> the nearest matrices with singular values near 1 (quintic Newton-Schulz, bf16)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.bfloat16()
    wide = x.shape[1] > x.shape[2]
    if wide:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x.mT @ x
        x = a * x + x @ (b * gram + c * gram @ gram)
    return (x.mT if wide else x).float()


class Muon:
    """`state` and `load` carry everything that a resumed run needs."""

    def __init__(self, parameters: dict[str, torch.Tensor], lr: float, adam_lr: float, decay: float) -> None:
        self.lr, self.adam_lr, self.decay = lr, adam_lr, decay
        self.momentum, self.betas, self.count = 0.95, (0.9, 0.95), 0
        by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
        self.rest: list[torch.Tensor] = []
        for name, value in parameters.items():
            if value.ndim == 2 and "embed" not in name:
                by_shape.setdefault(tuple(value.shape), []).append(value)
            else:
                self.rest.append(value)
        self.stacks = list(by_shape.values())
        self.buffers = [torch.zeros(len(s), *s[0].shape, device=s[0].device) for s in self.stacks]
        self.first = [torch.zeros_like(value) for value in self.rest]
        self.second = [torch.zeros_like(value) for value in self.rest]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update at `scale` times both learning rates; gradients are dropped."""
        self.count += 1
        for stack, buffer in zip(self.stacks, self.buffers, strict=True):
            gradient = torch.stack([value.grad for value in stack])  # type: ignore[misc]
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(buffer, self.momentum))
            lr = self.lr * scale
            tall = max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            torch._foreach_mul_(stack, 1 - lr * self.decay)
            torch._foreach_add_(stack, list(update.unbind(0)), alpha=-lr * tall)
        self._adam(self.adam_lr * scale)
        for value in [*self.rest, *(value for stack in self.stacks for value in stack)]:
            value.grad = None

    def _adam(self, lr: float) -> None:
        first, second = self.betas
        gradients = [value.grad for value in self.rest]
        torch._foreach_lerp_(self.first, gradients, 1 - first)  # type: ignore[arg-type]
        torch._foreach_mul_(self.second, second)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - second)  # type: ignore[arg-type]
        scale = torch._foreach_sqrt(torch._foreach_div(self.second, 1 - second**self.count))
        torch._foreach_add_(scale, 1e-9)
        torch._foreach_mul_([value for value in self.rest if value.ndim == 2], 1 - lr * self.decay)
        torch._foreach_addcdiv_(self.rest, self.first, scale, -lr / (1 - first**self.count))

    def state(self) -> dict[str, torch.Tensor]:
        named = {"count": torch.tensor(self.count)}
        for kind, values in (("muon", self.buffers), ("first", self.first), ("second", self.second)):
            named.update({f"{kind}.{index}": value for index, value in enumerate(values)})
        return named

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.count = int(state["count"])
        for kind, values in (("muon", self.buffers), ("first", self.first), ("second", self.second)):
            for index, value in enumerate(values):
                value.copy_(state[f"{kind}.{index}"])
