"""What `kvfoot demo` runs: a model, a document with something to find in it, and the methods that look for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from random import Random
from types import MappingProxyType


@dataclass(frozen=True)
class Case:
    """A document, a question about it, and what a right answer contains; `told` says it to the reader."""

    document: str
    question: str
    expected: str
    told: str

    def right(self, answer: str) -> bool:
        return self.expected in answer


@dataclass(frozen=True)
class Run:
    """A method as the engine takes it."""

    method: str
    keep: str | None = None
    evict: str = "post"
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def title(self) -> str:
        limit = [f"keep={self.keep}", self.evict] if self.keep else []
        return " ".join([self.method, *limit, *(f"{k}={v}" for k, v in self.options.items())])


@dataclass(frozen=True)
class LineUp:
    """case: seed -> what is asked; the runs in order, the first one is what the others are compared with."""

    model: str
    case: Callable[[int], Case]
    runs: tuple[Run, ...]
    max_new_tokens: int = 32


def passkey(seed: int) -> Case:
    """A book chapter with a number hidden between two of its paragraphs, in the middle half of it."""
    chapter = files("kvfoot").joinpath("data/demo/alice-chapter-6.txt").read_text(encoding="utf-8")
    paragraphs = chapter.strip().split("\n\n")
    random = Random(seed)
    key, depth = str(random.randrange(10_000, 100_000)), random.uniform(0.25, 0.75)
    ends, total = [], 0
    for paragraph in paragraphs:
        total += len(paragraph)
        ends.append(total)
    place = next(i for i, end in enumerate(ends) if end >= depth * total) + 1
    percent = round(100 * ends[place - 1] / total)
    return Case(
        document="\n\n".join(
            [*paragraphs[:place], f"One of the special magic numbers for Paris is: {key}.", *paragraphs[place:]]
        ),
        question="What is the special magic number for Paris mentioned in the provided text?",
        expected=key,
        told=f"Alice in Wonderland, chapter VI, a special magic number for Paris, {key}, hidden {percent} % into it.",
    )


LINEUPS: dict[str, LineUp] = {
    "passkey": LineUp(
        model="smollm2",
        case=passkey,
        # snapkv as its runner sets it: digits are tokens of their own, and pooling over 7 keeps a number together.
        runs=(
            Run("full"),
            Run("snapkv", "0.25", options={"window": "8", "kernel": "7", "pool": "max"}),
            Run("h2o", "0.25", "chunk"),
            Run("streaming", "0.25", "chunk"),
        ),
        max_new_tokens=24,
    ),
}
