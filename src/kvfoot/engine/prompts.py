"""From a document and a question to tokens, and from tokens back to text as they come."""

from dataclasses import dataclass
from typing import Any

from kvfoot.core.errors import UsageError

JOINT = "\n\n"
MARK = "\ue000"


@dataclass(frozen=True)
class Prompt:
    """What is read before eviction, and what comes after it on the kept cache."""

    before: list[int]
    after: list[int]


def uses_chat(tokenizer: Any, chat: bool | None) -> bool:
    """chat None: where the tokenizer has a template. Raises UsageError where one is asked for and there is none."""
    has = bool(getattr(tokenizer, "chat_template", None))
    if chat and not has:
        raise UsageError("the model has no chat template: use --no-chat")
    return has if chat is None else chat


def encode(
    tokenizer: Any, document: str, question: str = "", *, after: bool = False, chat: bool | None = None
) -> Prompt:
    """document and question as one prompt; with `after`, the question and the turn's end are kept for later.

    Raises UsageError for an empty prompt.
    """
    document = document.rstrip() if after else document
    if not document.strip() and not (question and not after):
        raise UsageError("the prompt is empty")
    content = document + (JOINT if document and question else "") + question
    if not uses_chat(tokenizer, chat):
        if after:
            head = tokenizer(document)["input_ids"]
            return Prompt(head, tokenizer(JOINT + question, add_special_tokens=False)["input_ids"])
        return Prompt(tokenizer(content)["input_ids"], [])
    rendered = _rendered(tokenizer, content)
    ids = lambda part: tokenizer(part, add_special_tokens=False)["input_ids"] if part else []  # noqa: E731
    if not after:
        return Prompt(ids(rendered), [])
    core = document.strip()
    # Where the turn begins, not where the words occur first: they may stand in the template's system prompt as well.
    turn = _rendered(tokenizer, MARK).find(MARK)
    at = rendered.find(core, turn) if turn >= 0 else -1
    if at < 0:
        raise UsageError(
            "the chat template rewrites the prompt: a question after it cannot be split off (use --no-chat)"
        )
    return Prompt(ids(rendered[: at + len(core)]), ids(rendered[at + len(core) :]))


def follow(tokenizer: Any, message: str, *, chat: bool | None = None) -> list[int]:
    """The next turn after an answer: the answer's end as the template writes it, the message, the turn's end.

    Raises UsageError for a template that rewrites earlier turns.
    """
    if not uses_chat(tokenizer, chat):
        return list(tokenizer(JOINT + message, add_special_tokens=False)["input_ids"])
    rendered = _rendered(tokenizer, "?", MARK, message)
    at = rendered.rfind(MARK)
    if at < 0:
        raise UsageError("the chat template rewrites answers: a turn cannot be added to them (use --no-chat)")
    return list(tokenizer(rendered[at + len(MARK) :], add_special_tokens=False)["input_ids"])


def _rendered(tokenizer: Any, *contents: str) -> str:
    """A conversation that the user began, with the next answer's beginning."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def check_length(positions: int, prompt: int, new: int) -> None:
    """Raises UsageError where prompt and new tokens exceed the model's positions, or there is no prompt."""
    if prompt == 0:
        raise UsageError("the prompt is empty")
    if new < 0:
        raise UsageError(f"max_new_tokens={new} is negative")
    if prompt + new > positions:
        raise UsageError(
            f"{prompt} prompt tokens + {new} new ones exceed the model's {positions} positions: shorten the prompt or "
            "lower max_new_tokens"
        )


def text(tokenizer: Any, tokens: list[int]) -> str:
    """Tokens as text, special ones left out; empty without a tokenizer."""
    return tokenizer.decode(tokens, skip_special_tokens=True) if tokenizer is not None else ""


class Detokenizer:
    """Text of a growing token list, a piece at a time; a piece waits until its last character is whole."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """The new text that `token` completes, possibly empty."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        if text.endswith("\ufffd"):
            return ""
        piece = text[len(self._shown) :]
        self._shown = text
        return piece

    @property
    def text(self) -> str:
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True)
