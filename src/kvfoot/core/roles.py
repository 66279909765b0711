"""Static head roles: KV heads that see everything, others that hold sinks and a window (arXiv 2410.10819, 2506.17121).

A heads file is one JSON object: gates per layer and KV head, how they become roles, which model they are of, how they
were trained. TSV files as DuoAttention and PruLong write them, a row per layer and a column per KV head, go in and out.
"""

import hashlib
import json
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kvfoot.core.errors import UsageError
from kvfoot.core.files import write_whole
from kvfoot.core.geometry import Geometry

SCHEMA = 1
Scale = Literal["log_alpha", "alpha", "mask"]
Rule = Literal["top", "quantile"]
SOFT = 1.2
"""A log alpha as one number in [0, 1] is sigmoid(1.2 log alpha), the released code's deterministic gate (0.8 / tau)."""


@dataclass(frozen=True)
class HeadGates:
    """Gates and what they are of.

    gates: fp32 [layers, kv_heads], higher sees more. scale: "log_alpha" (PruLong's parameter), "alpha" (DuoAttention's,
    in [0, 1]) or "mask" (0 or 1: roles, applied as they are). sparsity: share of streaming heads, None where the gates
    were made for none. rule: how a sparsity becomes a count (`full_heads`). sink, window: entries that a streaming head
    holds. model: name and `identity` (models/layout.py), either may be missing. training: the record of the run.
    """

    gates: np.ndarray
    scale: Scale
    sparsity: float | None = None
    rule: Rule = "top"
    sink: int | None = None
    window: int | None = None
    model: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "gates", np.ascontiguousarray(self.gates, np.float32))
        if self.gates.ndim != 2 or not self.gates.size:
            raise UsageError(f"gates of shape {list(self.gates.shape)}: one row per layer, one column per KV head")
        if not np.isfinite(self.gates).all():
            raise UsageError("gates are NaN or infinite")
        if self.scale not in get_args(Scale) or self.rule not in get_args(Rule):
            raise UsageError(f"scale {self.scale!r}, rule {self.rule!r}: none of {get_args(Scale)}, {get_args(Rule)}")
        if self.scale == "mask" and not np.isin(self.gates, (0, 1)).all():
            raise UsageError("a mask has values other than 0 and 1")
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
        for name, value in (("sink", self.sink), ("window", self.window)):
            if value is not None and (not isinstance(value, int) or value < 0):
                raise UsageError(f"{name} {value!r} is no count of tokens")

    @property
    def shape(self) -> tuple[int, int]:
        layers, heads = self.gates.shape
        return layers, heads

    @property
    def soft(self) -> np.ndarray:
        """fp32 [layers, kv_heads] in [0, 1]."""
        if self.scale != "log_alpha":
            return self.gates
        value: np.ndarray = 1 / (1 + np.exp(-np.float32(SOFT) * self.gates))
        return value

    def full(self, sparsity: float | None = None) -> np.ndarray:
        """bool [layers, kv_heads]: heads that see everything, at `sparsity` or at the gates' own; exactly so many.

        The highest gates of the whole model; among equal ones the lower layer, then the lower head. Without any
        sparsity: gates at or above one half. Raises UsageError where a mask is asked for another number of heads.
        """
        sparsity = self.sparsity if sparsity is None else check_sparsity(sparsity)
        if self.scale == "mask":
            ones = self.gates == 1
            if sparsity is not None and full_heads(ones.size, sparsity, self.rule) != ones.sum():
                raise UsageError(
                    f"sparsity={sparsity:g} of {ones.size} heads is {full_heads(ones.size, sparsity, self.rule)} full "
                    f"ones, this 0/1 mask has {ones.sum()}: leave sparsity out, or give a file of gates"
                )
            return ones
        if sparsity is None:
            return self.gates >= (0 if self.scale == "log_alpha" else 0.5)
        chosen = np.zeros(self.gates.size, bool)
        order = np.argsort(-self.gates.ravel(), kind="stable")
        chosen[order[: full_heads(self.gates.size, sparsity, self.rule)]] = True
        return chosen.reshape(self.shape)

    def check(self, geometry: Geometry, where: str) -> None:
        """Raises UsageError unless the gates are of a model of this shape and, where both are known, identity."""
        if self.shape != (geometry.layers, geometry.kv_heads):
            raise UsageError(
                f"{where} is of a model of {self.shape[0]} layers x {self.shape[1]} KV heads, this one has "
                f"{geometry.layers} x {geometry.kv_heads}: give a file that was trained for it"
            )
        own = self.model.get("identity")
        if own and geometry.identity and own != geometry.identity:
            name = f" ({self.model['name']})" if self.model.get("name") else ""
            raise UsageError(
                f"{where} is of another model{name} of as many layers and heads: give a file that was trained for this "
                "one"
            )

    # On disk

    def to_json(self) -> str:
        """Gates as the shortest decimals that give the same fp32."""
        rows = [[float(str(x)) for x in row] for row in self.gates]
        head = {"kvfoot": "heads", "schema": SCHEMA, "scale": self.scale, "sparsity": self.sparsity, "rule": self.rule}
        head |= {"sink": self.sink, "window": self.window, "model": self.model, "training": self.training}
        head |= {"layers": self.shape[0], "kv_heads": self.shape[1], "sha256": _digest(self.gates)}
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        return f'{json.dumps(head, indent=1)[:-2]},\n "gates": [\n{lines}\n ]\n}}\n'

    def to_tsv(self, sparsity: float | None = None, *, mask: bool = False) -> str:
        """Gates in [0, 1] as DuoAttention's file has them; with `mask` 0/1 roles as PruLong's."""
        rows = self.full(sparsity).astype(int).tolist() if mask else [[str(x) for x in row] for row in self.soft]
        return "".join("\t".join(map(str, row)) + "\n" for row in rows)

    def save(self, path: Path) -> None:
        """Written whole or not at all; a .tsv gets the gates in [0, 1], of a mask 0 and 1. Raises OSError."""
        write_whole(path, self.to_tsv(mask=self.scale == "mask") if path.suffix == ".tsv" else self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "HeadGates":
        """A heads file, or a TSV of gates in [0, 1] or of 0/1. Raises UsageError, one line, for anything else."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"heads file {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(
                f"heads file {path}: no text: give the JSON that kvfoot wrote, or a TSV of gates"
            ) from None
        try:
            return cls.from_json(text) if text.lstrip().startswith("{") else _from_tsv(text, path)
        except UsageError as error:
            raise UsageError(f"heads file {path}: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> "HeadGates":
        """Raises UsageError for JSON that is cut, changed, of a newer schema or no heads file."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"cut or damaged ({error}): copy or make it again") from None
        if data.get("kvfoot") != "heads":
            raise UsageError("no heads file: give the JSON that kvfoot wrote, or a TSV of gates")
        if data.get("schema") != SCHEMA:
            raise UsageError(f"of schema {data.get('schema')}; this kvfoot reads schema {SCHEMA}")
        names = ("scale", "sparsity", "rule", "sink", "window", "model", "training")
        try:
            found = cls(np.array(data["gates"], np.float32), **{name: data[name] for name in names})
            expected = data["sha256"], (data["layers"], data["kv_heads"])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"damaged ({error}): copy or make it again") from None
        if (_digest(found.gates), found.shape) != expected:
            raise UsageError("damaged: the gates are not those that were written: copy or make it again")
        return found


def full_heads(heads: int, sparsity: float, rule: Rule = "top") -> int:
    """Heads that see everything, exactly.

    "top": floor((1 - s) heads), as PruLong rounds. "quantile": those at or above the s-quantile of distinct gates,
    heads - ceil(s (heads - 1)), as DuoAttention does; at most one more.
    """
    s = Fraction(str(check_sparsity(sparsity)))
    return int((1 - s) * heads) if rule == "top" else heads - ceil(s * (heads - 1))


def check_sparsity(sparsity: float) -> float:
    """Raises UsageError outside [0, 1)."""
    if not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise UsageError(f"sparsity={sparsity} is the share of streaming heads, in [0, 1)")
    return sparsity


def read_roles(text: str) -> np.ndarray:
    """ "10/01" as bool [layers, kv_heads]: a layer's heads between slashes, 1 sees everything. Raises UsageError."""
    rows = text.split("/")
    if set(text) - set("01/") or len(set(map(len, rows))) != 1 or not rows[0]:
        raise UsageError(f"roles={text}: write 0 (streaming) or 1 (full) per KV head, layers between slashes: 10/01")
    return np.array([[c == "1" for c in row] for row in rows])


def write_roles(full: np.ndarray) -> str:
    """The reverse of `read_roles`."""
    return "/".join("".join("01"[int(x)] for x in row) for row in full)


def _from_tsv(text: str, path: Path) -> HeadGates:
    """DuoAttention clips at 0 and 1 where an optimiser step went beyond; its config.json may lie beside."""
    try:
        rows = [[float(x) for x in line.split("\t")] for line in text.splitlines() if line.strip()]
        gates = np.array(rows, np.float32)
    except ValueError:
        raise UsageError("no TSV of numbers, one row per layer and one column per KV head") from None
    if gates.size and not ((gates >= -0.1) & (gates <= 1.1)).all():
        raise UsageError(f"gates from {gates.min():g} to {gates.max():g}: a TSV holds gates in [0, 1]")
    sink, window = None, None
    beside = path.with_name("config.json")
    if path.name == "full_attention_heads.tsv" and beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
            sink, window = config.get("sink_size"), config.get("recent_size")
        except (ValueError, AttributeError):
            raise UsageError(f"{beside} beside it is no JSON object: mend it or move the TSV away from it") from None
    mask = bool(np.isin(gates, (0, 1)).all())
    return HeadGates(gates.clip(0, 1), "mask" if mask else "alpha", None, "top" if mask else "quantile", sink, window)


def _digest(gates: np.ndarray) -> str:
    return hashlib.sha256(gates.astype("<f4").tobytes()).hexdigest()
