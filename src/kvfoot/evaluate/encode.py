"""An example in the tokens of the model at hand."""

from dataclasses import dataclass
from typing import Any

from kvfoot.engine.prompts import JOINT, _rendered, encode, uses_chat
from kvfoot.evaluate.protocol import TOKEN_METRICS, Count, Example

ANCHOR = 40
"""Characters before an answer with which it is tokenised: what stands there decides how it begins."""


@dataclass(frozen=True)
class Asked:
    """prompt: read before eviction. after: read after it. reference: tokens of the answer whose NLL is reported.

    ends: tokens of the reference that the first 1, 2, ... units take. text: the prompt for a reader. limit: tokens of a
    generated answer. on_tokens: scored along the reference. chat: the template was used.
    """

    example: Example
    prompt: list[int]
    after: list[int]
    reference: list[int]
    ends: tuple[int, ...]
    text: str
    limit: int
    on_tokens: bool
    chat: bool

    @property
    def room(self) -> int:
        """Tokens that follow the kept prompt."""
        return len(self.after) + max(len(self.reference), self.limit)


def counter(tokenizer: Any) -> Count:
    """Tokens of a list of texts, special ones not counted."""
    return lambda texts: sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) if texts else 0


def without_template(tokenizer: Any, length: int, chat: bool | None) -> int:
    """Tokens of `length` that are left for a sample beside the chat template's own; 0 stays 0."""
    if not length or not uses_chat(tokenizer, chat):
        return length
    return max(length - counter(tokenizer)([_rendered(tokenizer, "")]), 1)


def ask(tokenizer: Any, example: Example, metric: str, chat: bool | None, question: str) -> Asked:
    """question: "before" or "after" eviction. Raises UsageError for an empty prompt."""
    after = question == "after" and bool(example.question)
    chatting = uses_chat(tokenizer, chat)
    end = "\n" if example.prefix and not chatting else ""  # no turn ends before the answer begins
    document, asked = example.document + ("" if example.question else end), example.question and example.question + end
    found = encode(tokenizer, document, asked, after=after, chat=chat)
    content = document + (JOINT if document and asked else "") + asked
    anchor = (_rendered(tokenizer, content) if chatting else content)[-ANCHOR:]
    prefix = continuation(tokenizer, anchor, example.prefix)
    reference, ends = units(tokenizer, anchor + example.prefix, example.units or (example.reference,))
    before, later = list(found.before), list(found.after)
    (later if after else before).extend(prefix)
    on_tokens = metric in TOKEN_METRICS and bool(reference) and example.score is None
    limit = len(reference) if on_tokens else example.room
    shown = content.rstrip("\n") + (f"{JOINT}{example.prefix}" if example.prefix else "")
    return Asked(example, before, later, reference, ends, shown, limit, on_tokens, chatting)


def continuation(tokenizer: Any, before: str, text: str) -> list[int]:
    """Tokens of `text` where it follows `before`: of both together, without those of `before` alone."""
    if not text:
        return []
    ids = lambda part: list(tokenizer(part, add_special_tokens=False)["input_ids"])  # noqa: E731
    head, whole = ids(before), ids(before + text)
    return whole[len(head) :] if whole[: len(head)] == head else ids(text)


def units(tokenizer: Any, before: str, pieces: tuple[str, ...]) -> tuple[list[int], tuple[int, ...]]:
    """Tokens of the pieces as they follow each other, and where each ends."""
    found: list[int] = []
    ends = []
    for piece in pieces:
        found += continuation(tokenizer, before, piece)
        before = (before + piece)[-ANCHOR:]
        ends.append(len(found))
    return found, tuple(ends)
