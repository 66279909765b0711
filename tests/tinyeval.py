"""A tiny model whose tokens are single printable characters, and tasks whose answers are its own greedy words."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from kvfoot.engine.engine import Engine
from kvfoot.evaluate.protocol import Count, Example
from tiny import make

ASKED = "What did it say?"
ALPHABET = [*map(chr, range(32, 127)), "\n", "\t"]


@cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.BPE({token: i for i, token in enumerate(ALPHABET)}, []))
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters)


@cache
def engine() -> Engine:
    return Engine(make("llama"), tokenizer(), name="tiny", revision="1", page_size=4)


def save(folder: Path) -> Path:
    make("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def words(seed: int, count: int) -> str:
    rng = Random(seed)
    return "".join(rng.choice(ALPHABET[:95]) for _ in range(count))


@dataclass
class Parrot:
    """Prompts of noise; the reference is what full attention writes, so that it scores 1 and others less."""

    metric: str = "exact"
    name: str = "parrot"
    category: str = "recall"
    chat: bool | None = None
    size: int = 60
    answer: int = 6
    wrong: tuple[int, ...] = ()
    made: dict[int, Example] = field(default_factory=dict)

    def sample(self, index: int, length: int, seed: int, count: Count) -> Example:
        if index not in self.made:
            document = words(100 * seed + index, self.size + 3 * (index % 4))
            run = engine().generate(document, question=ASKED, max_new_tokens=self.answer, chunk=None)
            written = run[0].text
            if index in self.wrong:
                written = written[:2] + chr(126 - (ord(written[2]) - 32) % 90) + written[3:]
            units = tuple(written[i : i + 2] for i in range(0, len(written), 2))
            self.made[index] = Example(document, ASKED, answers=(written,), units=units)
        return self.made[index]
