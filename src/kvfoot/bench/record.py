"""What `kvfoot bench` writes: the figures, and everything that they depend on."""

import json
import shlex
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kvfoot.core.errors import UsageError
from kvfoot.core.files import write_whole
from kvfoot.engine.account import device, packages
from kvfoot.engine.engine import Engine

SCHEMA = 1


def command_line(program: str, arguments: Iterable[str]) -> str:
    """A command as a record has it. Absolute paths mean nothing elsewhere: `--data /a/b` is `--data DATA`."""
    words, option = [], "PATH"
    for word in arguments:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        option = name.removeprefix("--").upper().replace("-", "_") or option
        words.append(f"{name}{equals}{option}" if value.startswith("/") else word)
        option = option if name and not equals else "PATH"
    return shlex.join([*program.split(), *words])


@dataclass(frozen=True)
class BenchRecord:
    """bench: decode, prefill, capacity or eviction. settings: what was asked for. figures: what was measured."""

    bench: str
    command: str
    model_shape: str
    dtype: str
    backend: str
    page_size: int
    settings: dict[str, Any]
    figures: dict[str, Any]
    packages: dict[str, str] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    date: str = ""
    schema: int = SCHEMA

    @classmethod
    def of(
        cls, bench: str, command: str, engine: Engine, settings: dict[str, Any], figures: dict[str, Any]
    ) -> "BenchRecord":
        return cls(
            bench,
            command,
            engine.name,
            str(engine.dtype).removeprefix("torch."),
            engine.backend.name,
            engine.page_size,
            settings,
            figures,
            packages() | _triton(),
            device(engine.device),
            time.strftime("%Y-%m-%d"),
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "BenchRecord":
        """Raises UsageError for a record of another schema or one that is not a benchmark's."""
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise UsageError(f"a record of schema {data['schema']}; this kvfoot reads schema {SCHEMA}")
            return cls(**{f.name: data[f.name] for f in fields(cls)})
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UsageError(f"not a benchmark's record: {error}") from None

    def save(self, path: Path) -> None:
        """Written whole or not at all. Raises OSError."""
        write_whole(path, self.to_json() + "\n")


def _triton() -> dict[str, str]:
    try:
        return {"triton": version("triton")}
    except PackageNotFoundError:
        return {}
