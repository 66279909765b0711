"""A reader over a method that evicts: `refreshkv+snapkv` stores what SnapKV keeps, and RefreshKV reads of that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from kvfoot.core.budget import Budget, Cut
from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import POSITION, Keep, Method, Needs, Plan, Plane, Seen
from kvfoot.core.reading import Query, Read, Reader
from kvfoot.core.storage import Storage

PLUS = "+"
SIZES = ("size", "read_keep")
Build = Callable[[str, Mapping[str, Any]], Method]


@dataclass(frozen=True, kw_only=True)
class Over(Reader):
    """Prompt passes, planes and what survives are the evictor's, with its keep or budget; reading is the reader's.

    size: entries read per row and step, or read_keep: a fraction of the prompt; neither: the reader's default, which is
    counted from the prompt as well. A reader knows slots, and those have to stay what they are: rows from which the
    evictor takes entries while decoding (streaming heads) are read whole, and there have to be others. Where the
    prompt's last token did not survive, the newest survivor stands for it.
    """

    reader: Reader
    evictor: Method
    size: int | None = None
    read_keep: float | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("name", f"{self.reader.name}{PLUS}{self.evictor.name}"),
            ("paper", self.reader.paper),
            ("category", self.reader.category),
            ("stores", self.evictor.stores),
            ("reads", self.reader.reads),
            ("needs", self.evictor.needs),
            ("total", self.evictor.total),
            ("budgeted", self.evictor.budgeted),
            ("batched", self.reader.batched),
            ("queue", self.reader.queue),
            ("grown", self.reader.grown),
        ):
            object.__setattr__(self, name, value)
        super().__post_init__()
        self._limits()
        if self.reader.aligned:
            raise UsageError(
                f"{self.name}: {self.reader.name} reads in one row what it chose in another, whose slots hold other "
                "entries once something is evicted: give refreshkv or quest"
            )
        if Needs.PRE_ROPE in self.evictor.needs:
            raise UsageError(f"{self.name}: {self.evictor.name} renumbers positions, which readers do not")

    @property
    def protected(self) -> int:
        return self.evictor.protected

    @property
    def observers(self) -> int:
        return self.evictor.observers

    @property
    def storage(self) -> Storage:
        return self.reader.storage

    @property
    def tokens(self) -> int:
        return self.reader.tokens

    @property
    def unrotates(self) -> bool:
        return self.reader.unrotates

    def fitted(self, geometry: Geometry) -> "Over":
        reader = self.reader.fitted(geometry)
        assert isinstance(reader, Reader)
        return replace(self, reader=reader, evictor=self.evictor.fitted(geometry))

    def planes(self, geometry: Geometry) -> tuple[Plane, ...]:
        return self.evictor.planes(geometry)

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        plan = self.evictor.prepare(geometry, prompt, chunk, budget)
        if plan.later is not None:
            self._check_later(plan.later)
        if any(plane is not POSITION for plane in plan.planes):
            raise UsageError(f"{self.name}: {self.evictor.name} watches every step, of which a reader shows it nothing")
        reading = self.reader.prepare(geometry, prompt, chunk, self._limits())
        return replace(plan, reads=reading.reads, storage=reading.storage)

    def _check_later(self, later: Cut) -> None:
        """Raises UsageError unless the evictor leaves whole rows alone while decoding: those are read."""
        if not any(later.spares(layer).any() for layer in range(len(later.counts))):
            cure = "give keep, not budget" if not self.evictor.total and self.evictor.budgeted else "use another"
            raise UsageError(
                f"{self.name}: {self.evictor.name} evicts while decoding, under which a reader's slots would move: "
                f"{cure} (snapkv, pyramidkv, adakv and keynorm with keep append what follows the prompt)"
            )
        if self.verify or self.rectify or self.tokens > 1:
            name = "verify" if self.verify else "rectify" if self.rectify else self.reader.name
            does = "takes tokens back" if self.verify or self.rectify else "corrects tokens"
            raise UsageError(f"{self.name}: {name} {does}, which {self.evictor.name}'s rows cannot")

    def observe(self, seen: Seen) -> dict[str, Tensor]:
        return self.evictor.observe(seen)

    def keep(self, seen: Seen) -> Keep:
        return self.evictor.keep(seen)

    def allocate(self, blocks: Sequence[Seen]) -> list[int]:
        return self.evictor.allocate(blocks)

    def start(self, query: Query) -> Any:
        return self.reader.start(query)

    def read(self, state: Any, query: Query) -> tuple[Any, Read]:
        return self.reader.read(state, query)

    def refresh(self, state: Any, query: Query) -> tuple[Any, Tensor]:
        return self.reader.refresh(state, query)

    def phase(self, step: int, n: int, size: int) -> str | None:
        return self.reader.phase(step, n, size)

    def places(self, n: Any) -> Any:
        return self.reader.places(n)

    def unseen(self, state: Any, query: Query, slots: Tensor) -> Tensor:
        return self.reader.unseen(state, query, slots)

    def options(self) -> dict[str, Any]:
        """All options by their full names, as `compose` takes them."""
        found = {name: getattr(self, name) for name in SIZES}
        for part in (self.reader, self.evictor):
            found |= {f"{part.name}.{option}": value for option, value in part.options().items()}
        return found

    def _limits(self) -> Budget:
        if self.size is not None and self.read_keep is not None:
            raise UsageError(
                f"{self.name}: size and read_keep exclude each other: a count, or a fraction of the prompt"
            )
        try:
            return Budget.of(self.read_keep, self.size)
        except UsageError as error:
            line = str(error).replace("budget=", "size=").replace("keep=", "read_keep=")
            raise UsageError(f"{self.name}: {line}") from None


def _divided(name: str, options: Mapping[str, Any], kinds: Mapping[str, type[Method]], build: Build) -> Method:
    """`adakv+evictor`: alpha is the division's, all else the evictor's."""
    first, evicts = name.split(PLUS)
    own: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for key, value in options.items():
        part, dot, option = key.partition(".")
        if dot and part not in (first, evicts):
            raise UsageError(f"{name} has no part {part!r}: {key} begins with {first}. or {evicts}.")
        (own if key in ("alpha", f"{first}.alpha") else given)[option if dot else key] = value
    alpha = build(first, own)
    divided: Method = kinds[first].over(build(evicts, given), {"alpha": alpha.alpha})  # type: ignore[attr-defined]
    return divided


def compose(name: str, options: Mapping[str, Any], kinds: Mapping[str, type[Method]], build: Build) -> Method:
    """`reader+evictor` with options: a name that one of the two has, or `part.name`. Raises UsageError.

    `adakv+evictor` divides a layer's budget by the evictor's scores.

    kinds: registered methods; build: one of them by name with its own options.
    """
    parts = name.split(PLUS)
    if len(parts) != 2:
        raise UsageError(f"method {name!r} has {len(parts)} parts: write reader{PLUS}evictor, such as refreshkv+snapkv")
    for part in parts:
        if part not in kinds:
            raise UsageError(f"method {name!r}: unknown method {part!r}{did_you_mean(part, list(kinds))}")
    reads, evicts = parts
    if hasattr(kinds[reads], "over"):
        return _divided(name, options, kinds, build)
    if not issubclass(kinds[reads], Reader) or issubclass(kinds[evicts], Reader):
        raise UsageError(f"method {name!r}: a method that reads comes first, one that evicts second: refreshkv+snapkv")
    own = {part: {f.name for f in fields(kinds[part])} for part in parts}
    given: dict[str, dict[str, Any]] = {part: {} for part in parts}
    sizes: dict[str, Any] = {}
    for key, value in options.items():
        part, dot, option = key.partition(".")
        if not dot and key in SIZES:
            sizes[key] = _number(name, key, value)
            continue
        if dot and part not in given:
            raise UsageError(f"{name} has no part {part!r}: {key} begins with {reads}. or {evicts}.")
        owners = [part] if dot else [p for p in parts if key in own[p]]
        option = option if dot else key
        if not owners:
            raise UsageError(
                f"{name} has no option {key!r}{did_you_mean(key, sorted({*SIZES, *own[reads], *own[evicts]}))}"
            )
        if len(owners) > 1:
            raise UsageError(f"{name}: both have {key}: write {reads}.{key}={value} or {evicts}.{key}={value}")
        if option in given[owners[0]]:
            raise UsageError(f"{name}: {owners[0]}.{option} is given twice")
        given[owners[0]][option] = value
    reader, evictor = build(reads, given[reads]), build(evicts, given[evicts])
    assert isinstance(reader, Reader)
    shared = {name: getattr(reader, name) for name in ("verify", "rectify", "store")}
    return Over(**shared, reader=reader, evictor=evictor, **sizes)


def _number(name: str, key: str, value: Any) -> Any:
    if value is None or value in ("none", "None"):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name}: {key}={value!r} is not a number") from None
    if key == "read_keep":
        return number
    if not number.is_integer():
        raise UsageError(f"{name}: size={value} is a count of entries; read_keep is a fraction of the prompt")
    return int(number)
