"""A file of learned scores: what `kvfoot train wgkv` and `locret` write and the methods of their names read.

safetensors, tensors by layer (`3.up`), and a JSON header: whose model they score, how they were trained, a digest.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry

SCHEMA = 1
Weights = Mapping[str, Tensor]
"""Of one layer, by name; what they are is the method's business."""


@dataclass(frozen=True)
class Learned:
    """layers: weights fp32, one mapping each. shape: (layers, KV heads, query heads per KV head, head dimension).

    options: of the method, as they were trained (a window). model: name and `identity` (models/layout.py), either may
    be missing. training: the record of the run.
    """

    method: str
    layers: tuple[Weights, ...]
    shape: tuple[int, int, int, int]
    options: dict[str, Any] = field(default_factory=dict)
    model: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """16 hex digits over names, shapes and values."""
        found = hashlib.sha256()
        for name, x in self._named().items():
            found.update(f"{name} {list(x.shape)}".encode())
            found.update(x.numpy().tobytes())
        return found.hexdigest()[:16]

    def _named(self) -> dict[str, Tensor]:
        every = {f"{i}.{name}": x for i, layer in enumerate(self.layers) for name, x in layer.items()}
        return {name: every[name].detach().to("cpu", torch.float32).contiguous() for name in sorted(every)}

    def check(self, geometry: Geometry, where: str, method: str) -> None:
        """Raises UsageError unless it is of `method`, and of a model of this shape and identity."""
        if self.method != method:
            raise UsageError(f"{where} was trained for {self.method}, not for {method}: use --method {self.method}")
        cure = f"train one for this model (kvfoot train {method} --model M)"
        own = (geometry.layers, geometry.kv_heads, geometry.group, geometry.head_dim)
        if self.shape != own:
            told = "{} layers x {} KV heads x {} query heads of {}"
            raise UsageError(
                f"{where} is of a model of {told.format(*self.shape)}, this one has {told.format(*own)}: {cure}"
            )
        theirs = self.model.get("identity")
        if theirs and geometry.identity and theirs != geometry.identity:
            name = f" ({self.model['name']})" if self.model.get("name") else ""
            raise UsageError(f"{where} is of another model{name} of the same shape: {cure}")

    def save(self, path: Path) -> None:
        """Written whole or not at all. Raises OSError."""
        head = {"method": self.method, "schema": SCHEMA, "shape": self.shape, "options": self.options}
        head |= {"model": self.model, "training": self.training, "digest": self.digest}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(self._named(), temporary, metadata={"kvfoot": json.dumps(head)})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "Learned":
        """Read once as long as it does not change. Raises UsageError, one line, for anything else than such a file."""
        try:
            changed = Path(path).stat().st_mtime_ns
        except OSError as error:
            raise UsageError(f"file of scores {path}: {error.strerror}") from None
        return _load(str(path), changed)


@lru_cache(maxsize=4)
def _load(path: str, changed: int) -> Learned:
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            # Copied: a mapped file that somebody writes over takes the process with it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"file of scores {path}: cut or damaged ({error}): copy or train it again") from None
    if "kvfoot" not in meta:
        raise UsageError(f"file of scores {path}: not written by kvfoot train: give its scores.safetensors")
    try:
        head = json.loads(meta["kvfoot"])
        if head["schema"] != SCHEMA:
            raise UsageError(f"file of scores {path}: of schema {head['schema']}, this kvfoot reads schema {SCHEMA}")
        layers: list[dict[str, Tensor]] = [{} for _ in range(head["shape"][0])]
        for name, x in tensors.items():
            index, part = name.split(".", 1)
            layers[int(index)][part] = x
        shape = tuple(map(int, head["shape"]))
        found = Learned(head["method"], tuple(layers), shape, head["options"], head["model"], head["training"])  # type: ignore[arg-type]
        written = head["digest"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError(f"file of scores {path}: damaged ({error!r}): copy or train it again") from None
    if found.digest != written:
        raise UsageError(f"file of scores {path}: damaged: the weights are not those that were written")
    return found
