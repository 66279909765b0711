"""Results as one compressed JSON file, small enough for a repository: what samples share is written once."""

import gzip
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvfoot.core.errors import UsageError
from kvfoot.core.records import RunRecord
from kvfoot.core.results import Cell, SampleResult
from kvfoot.evaluate.store import FILE, Store

SCHEMA = 1
COMMON = ("config", "revision", "packages", "device", "seed", "schema")
"""Fields of a record that whole cells have in common."""


def read(path: Path) -> list[SampleResult]:
    """Results of a sweep's folder, its results.sqlite, or an export. Raises UsageError."""
    if path.is_dir() or path.name == FILE:
        store = Store(path if path.is_dir() else path.parent, create=False)
        try:
            return store.results()
        finally:
            store.close()
    if not path.is_file():
        raise UsageError(f"{path}: no such folder or file: give what kvfoot eval wrote")
    try:
        data = json.loads(gzip.decompress(path.read_bytes()))
        if data["kvfoot"] > SCHEMA:
            raise UsageError(f"{path} has schema {data['kvfoot']}, this kvfoot reads up to {SCHEMA}: use a newer one")
        return [_unpack(data, row) for row in data["samples"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is no export of kvfoot's results: {error}") from None


def write(results: list[SampleResult], path: Path, prompt: int = 400) -> None:
    """prompt: characters kept of each prompt, from its end (the question). Written whole or not at all."""
    tables: dict[str, dict[str, int]] = {"cells": {}, "commons": {}, "prompts": {}}

    def number(table: str, value: Any) -> int:
        return tables[table].setdefault(json.dumps(value, sort_keys=True), len(tables[table]))

    rows = []
    for r in results:
        record = asdict(r.record)
        common = {name: record.pop(name) for name in COMMON}
        short = r.prompt if len(r.prompt) <= prompt else f"[...]{r.prompt[-prompt:]}" if prompt else "[...]"
        cell = number("cells", asdict(r.cell)), number("commons", common), number("prompts", short)
        rows.append([*cell, r.index, r.answer, r.reference, r.score, r.nll, int(r.stepped), int(r.complete), record,
                     r.figures, r.timeline])  # fmt: skip
    data = {"kvfoot": SCHEMA} | {name: [json.loads(key) for key in table] for name, table in tables.items()}
    text = json.dumps(data | {"samples": rows}, separators=(",", ":"), sort_keys=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # readable by whom the user's umask lets
    try:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _unpack(data: dict[str, Any], row: list[Any]) -> SampleResult:
    cell, common, prompt, index, answer, reference, score, nll, stepped, complete, record, figures, timeline = row
    return SampleResult(
        cell=Cell(**data["cells"][cell]),
        index=index,
        prompt=data["prompts"][prompt],
        answer=answer,
        reference=reference,
        score=score,
        nll=nll,
        stepped=bool(stepped),
        record=RunRecord.from_json(json.dumps(record | data["commons"][common])),
        figures=figures,
        timeline=[(seen, stored) for seen, stored in timeline],
        complete=bool(complete),
    )
