"""The state of a gate training on disk: written whole or not at all, and resumed only with the same options."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvfoot.core.errors import UsageError

NAME = "state.safetensors"


def save_state(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Written beside, to the disk, and then renamed: a cut leaves the old state. Raises OSError."""
    temporary = folder / f".{NAME}.{os.getpid()}"
    named = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    save_file(named, temporary, metadata={"meta": json.dumps(meta)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)


def load_state(folder: Path, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and what was said beside them. Raises UsageError where it is missing, damaged or of other options."""
    path = folder / NAME
    if not path.is_file():
        raise UsageError(f"--resume: {path} is missing, there is nothing to go on with: leave --resume out")
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["meta"])
        tensors = load_file(path)
        theirs = meta["options"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is cut or damaged ({error}): delete it and start anew") from None
    different = [name for name in options if options[name] != theirs.get(name)]
    if different:
        wanted = ", ".join(f"{name} {theirs.get(name)} (asked for {options[name]})" for name in different)
        raise UsageError(f"{path} is of another run: {wanted}; resume with the same options or start anew")
    return tensors, meta


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts by parameter number."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{name}": x for i, values in state.items() for name, x in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    found: dict[int, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            found.setdefault(int(index), {})[name] = x
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": found, "param_groups": whole["param_groups"]})
