"""Context synthesis without a language model: short questions and answers, and a long text made around them.

The published data set (arXiv 2502.15592, an ablation of 2506.17121) lets a model write a background for every pair of
instruction and answer, and mixes in those of others. Here a background is a note about an invented subject:
its facts in changing wordings and order, with text from files between notes. All have the same kinds of facts,
so that an answer takes both the subject and the kind; the pairs asked for stand at the end.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kvfoot.core.errors import UsageError
from kvfoot.train.packing import LEAST, Packed, Row
from kvfoot.train.passkeys import Documents, woven

Supervise = Literal["answers", "questions"]
INTRODUCTION = "Read the text. Between its parts there are notes; at the end questions about them are answered.\n\n"
QUESTION = "\n\nQuestion: {question}\nAnswer:"
SYLLABLES = ("ba", "cor", "del", "el", "fin", "gar", "hul", "im", "jo", "kel", "lor", "mon", "nar", "os", "pel", "quin",
             "ros", "sel", "tor", "ur", "ven", "wil", "yar", "zan")  # fmt: skip
FORMS = ("the {} company", "the ship {}", "the village of {}", "the house of {}", "the school at {}", "the {} mill")
COLOURS = ("amber", "black", "blue", "brown", "copper", "green", "grey", "ivory", "lilac", "olive", "orange", "pink",
           "purple", "red", "rust", "silver", "teal", "violet", "white", "yellow")  # fmt: skip
TRADES = ("bells", "boots", "bread", "candles", "carpets", "cheese", "clocks", "glass", "hats", "honey", "ink", "lamps",
          "nails", "paper", "pottery", "rope", "salt", "soap", "tea", "wool")  # fmt: skip


def name(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=3)).capitalize()


@dataclass(frozen=True)
class Kind:
    """A fact that every subject has: how it is said, with {s} and {v}, how it is asked, and what it may be."""

    said: tuple[str, ...]
    question: str
    value: Callable[[random.Random], str]


KINDS = (
    Kind(("{s} was founded in {v}.", "It was in {v} that {s} began.", "The year {v} saw the beginning of {s}."),
         "In which year did {s} begin?", lambda rng: str(rng.randrange(1200, 2000))),
    Kind(("{s} is led by {v}.", "At the head of {s} stands {v}.", "{v} has charge of {s}."),
         "Who has charge of {s}?", lambda rng: f"{name(rng)} {name(rng)}"),
    Kind(("{s} counts {v} people.", "There are {v} people at {s}.", "{v} people belong to {s}."),
         "How many people belong to {s}?", lambda rng: str(rng.randrange(100, 100_000))),
    Kind(("The door of {s} is {v}.", "{s} has a door painted {v}.", "Whoever looks for {s} looks for a {v} door."),
         "Which colour has the door of {s}?", lambda rng: rng.choice(COLOURS)),
    Kind(("{s} sells {v}.", "One buys {v} from {s}.", "{v} of good quality come from {s}."),
         "What does {s} sell?", lambda rng: rng.choice(TRADES)),
    Kind(("Letters to {s} go to box {v}.", "{s} has the letter box {v}.", "Box {v} is that of {s}."),
         "To which box do letters to {s} go?", lambda rng: f"{rng.randrange(16**6):06x}"),
)  # fmt: skip


@dataclass(frozen=True)
class SynthesisShape:
    """notes: subjects with a note; facts: of each; pairs: questions with their answers at the end. supervise: the
    answers alone, or all tokens after the text. shortest: tokens of the shortest row."""

    notes: int = 16
    facts: int = 4
    pairs: int = 4
    supervise: Supervise = "answers"
    shortest: int = 1000

    def __post_init__(self) -> None:
        if self.notes < 1 or not 1 <= self.facts <= len(KINDS):
            raise UsageError(f"{self.notes} notes of {self.facts} facts: give 1 or more notes of 1 to {len(KINDS)}")
        if not 1 <= self.pairs <= self.notes * self.facts:
            raise UsageError(f"{self.pairs} questions about {self.notes * self.facts} facts: give 1 to that many")


class Synthesis(Documents):
    """Notes about subjects, and questions about what they say."""

    kind = "synthesis"

    def __init__(self, text: Packed, shape: SynthesisShape, seed: int = 0):
        super().__init__(text, seed)
        self.shape = shape
        notes, pairs = self._written(random.Random(f"synthesis/{seed}/size"))
        needed = sum(len(text.encode(x)) for x in (INTRODUCTION, *notes, *(y for pair in pairs for y in pair)))
        needed = needed * 5 // 4 + LEAST  # rows differ in length
        if text.length < needed:
            raise UsageError(
                f"--length {text.length}: {shape.notes} notes of {shape.facts} facts with {shape.pairs} questions take "
                f"up to {needed} tokens: give more, or fewer notes or facts"
            )

    def _written(self, rng: random.Random) -> tuple[list[str], list[tuple[str, str]]]:
        """Notes, and pairs of question and answer. Subjects differ; a value may be that of several."""
        shape = self.shape
        subjects = list(_different(lambda: rng.choice(FORMS).format(name(rng)), shape.notes))
        kinds = rng.sample(KINDS, shape.facts)
        notes, facts = [], []
        for subject in subjects:
            lines = []
            for kind in rng.sample(kinds, len(kinds)):
                value = kind.value(rng)
                line = rng.choice(kind.said).format(s=subject, v=value)
                lines.append(line[0].upper() + line[1:])
                facts.append((kind.question.format(s=subject), value))
            notes.append("\n\n" + " ".join(lines) + "\n\n")
        return notes, [(QUESTION.format(question=q), f" {a}.") for q, a in rng.sample(facts, shape.pairs)]

    def make(self, rng: random.Random, number: int) -> Row:
        notes, pairs = self._written(rng)
        encode = self.text.encode
        head = [*self.text.begin, *encode(INTRODUCTION)]
        every = self.shape.supervise == "questions"
        tail = [part for q, a in pairs for part in ((encode(q), every), (encode(a), True))]
        return woven(self.text, rng, head, [encode(note) for note in notes], tail, self.shape.shortest)


def _different(make: Callable[[], str], count: int) -> dict[str, None]:
    """`count` different strings, in the order of their making."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[make()] = None
    return found
