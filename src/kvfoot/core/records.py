"""What a run cost: every figure of this project is quoted from such records (schema: docs/record.md)."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kvfoot.core.errors import UsageError
from kvfoot.core.files import write_whole

SCHEMA = 1


@dataclass(frozen=True)
class Footprint:
    """Fractions of full attention (decision D6): stored pairs, peak entries, pairs read, bytes on the device, those on
    the host."""

    kv: float
    peak: float
    read: float
    bytes: float
    host: float = 0.0


@dataclass(frozen=True)
class Memory:
    """Bytes, from the pool: held after the prompt, at the worst moment; and the dense cache of the same prompts.

    host_held_bytes, host_peak_bytes: the same of what was put on the host. side_bytes: the most that readers held
    beside the pool, on the device: partial caches, bounds, indices.
    """

    held_bytes: int
    peak_bytes: int
    dense_bytes: int
    host_held_bytes: int = 0
    host_peak_bytes: int = 0
    side_bytes: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds of prefill, seconds to the first token, milliseconds per decode step (None where nothing was decoded)."""

    prefill_s: float
    ttft_s: float
    decode_ms_per_token: float | None


@dataclass(frozen=True)
class SequenceRecord:
    """One prompt of the batch. kept: entries after the prompt, [layers][kv_heads].

    strides: decode steps per refresh of each layer, where a reader refreshes; None: it never did.
    """

    prompt: int
    generated: int
    footprint: Footprint
    kept: list[list[int]]
    strides: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class RunRecord:
    """One run. footprint is the mean over the batch; tokens are sums; memory is the whole batch's."""

    footprint: Footprint
    memory: Memory
    timings: Timings
    tokens: dict[str, int]
    config: dict[str, Any]
    revision: str
    packages: dict[str, str]
    device: dict[str, Any]
    seed: int
    sequences: list[SequenceRecord] = field(default_factory=list)
    interrupted: bool = False
    schema: int = SCHEMA

    @property
    def kept(self) -> list[list[float]]:
        """Entries kept per layer and KV head after the prompt, mean over the batch."""
        every = [s.kept for s in self.sequences]
        return [[sum(x) / len(x) for x in zip(*layer, strict=True)] for layer in zip(*every, strict=True)]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "RunRecord":
        """Raises UsageError for a record of another schema or one that is not a record."""
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise UsageError(f"a record of schema {data['schema']}; this kvfoot reads schema {SCHEMA}")
            data["footprint"] = Footprint(**data["footprint"])
            data["memory"] = Memory(**data["memory"])
            data["timings"] = Timings(**data["timings"])
            data["sequences"] = [
                SequenceRecord(**{**s, "footprint": Footprint(**s["footprint"])}) for s in data["sequences"]
            ]
            return cls(**{f.name: data[f.name] for f in fields(cls)})
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UsageError(f"not a run record: {error}") from None

    def save(self, path: str | Path) -> None:
        """Written whole or not at all. Raises OSError (disk full, no such folder)."""
        write_whole(Path(path), self.to_json() + "\n")


def mean(footprints: list[Footprint]) -> Footprint:
    """Field by field."""
    return Footprint(
        **{f.name: sum(getattr(x, f.name) for x in footprints) / len(footprints) for f in fields(Footprint)}
    )
