"""LongProc's data: a clone of the public repository, its `data` folder, or that folder packed as .tar.gz."""

from __future__ import annotations

import functools
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kvfoot.core.errors import UsageError

CURE = "clone https://github.com/princeton-pli/LongProc as FOLDER/longproc, and name FOLDER with --data"
Grade = Callable[[str], tuple[float, float]]


@dataclass(frozen=True)
class Item:
    """One problem. grade: an answer's (accuracy, partial accuracy), by the benchmark's rules."""

    prompt: str
    reference: str
    grade: Grade


@dataclass(frozen=True)
class Source:
    """The data by paths like "countdown/prompts.yaml"."""

    folder: Path

    def read(self, path: str) -> str:
        """A file's text. `UsageError` says which is missing and where to get it."""
        for place in (self.folder / "data" / path, self.folder / path):
            if place.is_file():
                return place.read_text(encoding="utf-8")
        packed = _unpack(self.folder)
        if path not in packed:
            raise UsageError(f"{self.folder} has no LongProc file {path}: {CURE}")
        return packed[path].decode("utf-8")

    def rows(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.read(path))
        return found

    def template(self, task: str) -> str:
        return str(yaml.safe_load(self.read(f"{task}/prompts.yaml"))["USER_PROMPT"])


@functools.lru_cache(maxsize=2)
def _unpack(folder: Path) -> dict[str, bytes]:
    """Files of all .tar.gz archives of a folder, by their path below `data/`."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is not None:
                    found[member.name.removeprefix("./").removeprefix("data/")] = stream.read()
    return found


def open_source(folder: Path | None, task: str) -> Source:
    """`UsageError` where the folder is not named or does not exist."""
    if folder is None:
        raise UsageError(f"{task} needs LongProc's data: {CURE}")
    if not folder.is_dir():
        raise UsageError(f"--data {folder}: no such folder: {CURE}")
    return Source(folder)


def tagged(text: str, tag: str) -> str | None:
    """What stands between the first <tag> and the first </tag>; None where one is missing."""
    start, end = text.find(f"<{tag}>"), text.find(f"</{tag}>")
    return None if start < 0 or end < 0 else text[start + len(tag) + 2 : end].strip()


def until_first_error(right: list[bool], lines: int) -> float:
    """Share of the reference's lines before the first wrong one.

    LongProc's script counts the first wrong line of a route as well, and drops the last right one of a search.
    """
    return (right.index(False) if False in right else len(right)) / lines
