"""Heads files that come with the package: data/heads/*.json, known by the identity of the model that they are of."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from kvfoot.core.roles import HeadGates

FOLDER = Path(str(files("kvfoot"))) / "data" / "heads"


@cache
def shipped(folder: Path) -> dict[str, HeadGates]:
    """Name (without .json) to gates."""
    return {path.stem: HeadGates.load(path) for path in sorted(folder.glob("*.json"))}


def find(file: str) -> HeadGates:
    """A file of the package by its name, else any heads file by its path. Raises UsageError."""
    return shipped(FOLDER).get(file) or HeadGates.load(file)


def trained_for(identity: str, method: str, sparsity: float) -> str | None:
    """Name of the file that `method` trained for a model, at the sparsity nearest to the wanted one; None: no such."""
    found = {
        name: gates.sparsity if gates.sparsity is not None else sparsity
        for name, gates in shipped(FOLDER).items()
        if gates.model.get("identity") == identity and gates.training.get("method") == method
    }
    return min(found, key=lambda name: (abs(found[name] - sparsity), name)) if found else None
