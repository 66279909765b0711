"""Rows of a public data set, through the `datasets` library: local JSONL files first, else the hub."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kvfoot.core.errors import UsageError

PARQUET = "refs/convert/parquet"
"""The hub's own conversion of data sets that come as scripts, which `datasets` no longer runs."""


class Rows(Protocol):
    """What is used of a `datasets.Dataset`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Hub:
    """Where the hub has it: a data set with split, configuration and revision, or `files`, an address of JSONL."""

    name: str = ""
    split: str = "test"
    config: str | None = None
    revision: str | None = None
    files: str | None = None


@functools.lru_cache(maxsize=8)
def load(task: str, folder: Path | None, names: Sequence[str], hub: Hub | None) -> Rows:
    """The first of the files `names` of `folder`, else the hub's.

    Raises UsageError without the `datasets` extra, or where neither can be had.
    """
    try:
        import datasets
        import httpx
    except ImportError:
        raise UsageError(f"{task} needs the extra datasets: pip install 'kvfoot[datasets]'") from None
    places = [folder / name for name in names] if folder else []
    path = next((place for place in places if place.is_file()), None)
    if path is None and hub is None:
        raise UsageError(
            f"{task} needs {' or '.join(names)}: download the benchmark's data, name it with --data FOLDER"
        )
    datasets.disable_progress_bars()
    try:
        found: Rows
        if path is not None:
            found = datasets.load_dataset("json", data_files=str(path), split="train")
        elif hub is not None and hub.files:
            found = datasets.load_dataset("json", data_files=hub.files, split="train")
        elif hub is not None:
            found = datasets.load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision)
    except (OSError, RuntimeError, ValueError, httpx.HTTPError) as error:
        where = path or (hub and (hub.files or hub.name))
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{task}: {where} cannot be read ({reason}): connect to the network, or name a folder with "
            f"{' or '.join(names)} with --data FOLDER"
        ) from None
    return found
