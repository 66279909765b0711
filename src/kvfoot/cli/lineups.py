"""What `kvfoot demo` runs: a model, a document with something to find in it, and the methods that look for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
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

    def verdict(self, answer: str) -> str:
        """What the table says of an answer."""
        return "right" if self.right(answer) else "wrong"


@dataclass(frozen=True)
class Steps(Case):
    """A case whose answer is written step by step; `"".join(steps)` is the whole of it."""

    steps: tuple[str, ...]

    def share(self, answer: str) -> float:
        """Steps before the first wrong one, over all of them: what follows an error has nothing to follow."""
        written, wanted, done = answer.strip(), "", 0
        for step in self.steps:
            wanted = (wanted + step).lstrip()
            if not written.startswith(wanted):
                break
            done += 1
        return done / len(self.steps)

    def verdict(self, answer: str) -> str:
        share = self.share(answer)
        return f"{share:.0%}, {round(share * len(self.steps))} of {len(self.steps)} hops"


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


HOPS, CONTEXT = 16, 4096
CHARACTERS_PER_TOKEN = 2.3  # of lists of keys, in the tokenizer of `recall`: the case is made before it is loaded


def chain(seed: int) -> Steps:
    """A list of keys of two words, in no order, to be laid end to end (evaluate/tasks/chain.py, dev side)."""
    from kvfoot.evaluate.tasks import chain as family
    from kvfoot.evaluate.tasks.corpus import Corpus, read_vocabulary
    from kvfoot.evaluate.tasks.registry import Task

    words = read_vocabulary(Path(str(files("kvfoot"))) / "data", "dev", towns=False)
    task = Task("chain", "long output", "prefix", "chain", family.ChainShape(HOPS), family.draft)
    sample = task.sample(
        Corpus("dev", {}, words), lambda texts: round(sum(map(len, texts)) / CHARACTERS_PER_TOKEN), CONTEXT, seed
    )
    keys = sample.metadata["keys"]
    return Steps(
        document=sample.context,
        question=sample.question,
        expected="".join(sample.answers).strip(),
        told=f"{keys} keys of two words in no order; {HOPS} of them are to be laid end to end.",
        steps=sample.answers,
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
    "chain": LineUp(
        model="recall",
        case=chain,
        runs=(
            Run("full"),
            Run("snapkv", "0.25", options={"window": "8", "kernel": "7", "pool": "max"}),
            Run("streaming", "0.25", "chunk"),
        ),
        max_new_tokens=13 * HOPS,  # a key is about ten tokens
    ),
}
