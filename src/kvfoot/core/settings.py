"""A method with its options and budget as a file: `kvfoot tune` and `calibrate` write it, `kvfoot run` takes it."""

import json
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from kvfoot.core.errors import UsageError

SCHEMA = 1
SHIPPED = Path(str(files("kvfoot"))) / "data" / "settings"


@dataclass(frozen=True)
class Settings:
    """As `Engine.generate` takes them. found: how they were found, for a reader.

    model: name and `identity` (models/layout.py) of the only model that they suit; empty: any.
    """

    method: str = "full"
    options: dict[str, Any] = field(default_factory=dict)
    keep: float | None = None
    budget: int | None = None
    evict: str = "post"
    chunk: int | None = 512
    found: dict[str, Any] = field(default_factory=dict)
    model: dict[str, str] = field(default_factory=dict)

    def check(self, identity: str, path: Path) -> None:
        """Raises UsageError for a model that they were not made for."""
        if self.model and self.model.get("identity") != identity:
            raise UsageError(
                f"--settings {path} was made for {self.model.get('name') or 'another model'}, whose shape is another: "
                f"make one for this model with kvfoot calibrate {self.method}"
            )

    def save(self, path: Path) -> None:
        """Raises OSError."""
        path.write_text(json.dumps({"kvfoot_settings": SCHEMA} | asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """A file, or by its bare name one of those that come with the package (data/settings).

        Raises UsageError for a file that is missing, no settings file, or of a newer schema.
        """
        shipped = SHIPPED / f"{path}.json"
        if path.name == str(path) and not path.exists() and shipped.is_file():
            path = shipped
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"--settings {path}: {getattr(error, 'strerror', None) or 'not JSON'}") from None
        schema = data.pop("kvfoot_settings", None) if isinstance(data, dict) else None
        if not isinstance(schema, int):
            raise UsageError(f"--settings {path} is no settings file: kvfoot tune and kvfoot calibrate write them")
        if schema > SCHEMA:
            raise UsageError(f"--settings {path} has schema {schema}, this kvfoot reads {SCHEMA}: use a newer kvfoot")
        strange = [key for key in data if key not in {f.name for f in fields(cls)}]
        if strange:
            raise UsageError(f"--settings {path}: unknown field {strange[0]!r}")
        return cls(**data)
