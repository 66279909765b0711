"""A frozen model's forward passes over one packed row: last hidden states, and the nll in blocks of logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kvfoot.core.errors import UsageError
from kvfoot.train.mixed import Mixed
from kvfoot.train.packing import Row

LOGITS = 2048
"""Tokens whose logits exist at once."""


@contextmanager
def frozen(model: Any, *, checkpointing: bool) -> Iterator[None]:
    """Within, no weight takes a gradient and nothing is dropped; with `checkpointing` a layer keeps only its input."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        with checkpointed(model, checkpointing):
            yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


@contextmanager
def checkpointed(model: Any, checkpointing: bool = True) -> Iterator[None]:
    """Within, a layer keeps only its input for the way back.

    Only the layers themselves are told that they train: transformers asks them whether to checkpoint, and their
    dropouts stay as in evaluation.
    """
    layers = _layers(model) if checkpointing else []
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        if checkpointing:
            model.gradient_checkpointing_disable()


def _layers(model: Any) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not found:
        raise UsageError(f"{type(model).__name__} cannot checkpoint its layers: use --no-checkpointing")
    return found


def hidden(model: Any, mixed: Mixed, row: Row, z: Tensor | None, *, restart: bool) -> Tensor:
    """Last hidden states [T, width] after the final norm; z None: full attention. The draw z serves every layer of the
    pass, and of its recomputation."""
    mixed.z, mixed.spans = z, row.spans
    device = model.device
    ids, positions = row.tokens[None].to(device), mixed.placed(row.positions(restart).to(device))[None]
    out = model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    states: Tensor = out.last_hidden_state[0]
    return states


def nll(model: Any, states: Tensor, targets: Tensor, block: int = LOGITS) -> Tensor:
    """Sum of the negative log likelihoods of `targets` (-100: not counted), fp32. Logits are made again backwards."""
    head = model.get_output_embeddings()

    def part(x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(head(x).float(), target, ignore_index=-100, reduction="sum")

    targets = targets.to(states.device)
    total = states.new_zeros((), dtype=torch.float32)
    for x, target in zip(states.split(block), targets.split(block), strict=True):
        total = total + checkpoint(part, x, target, use_reentrant=False)
    return total
