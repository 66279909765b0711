"""One document read once; many questions and a conversation on what was kept of it."""

from pathlib import Path
from typing import Any

from kvfoot.core.errors import UsageError
from kvfoot.core.hooks import Method, Plan
from kvfoot.engine.account import record
from kvfoot.engine.clock import Clock
from kvfoot.engine.prompts import check_length, encode, follow, text
from kvfoot.engine.replay import check as check_replay
from kvfoot.engine.replay import forget
from kvfoot.engine.result import Interrupted, Result
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence


class Session:
    """A kept cache to ask about. Every question (`ask`) starts from the document; every `turn` from the one before.

    base: the document. talk: the document and the turns so far, None before the first. Pages are shared until one side
    writes to them. The constructor takes what `read`, `fork` or `Engine.resume` have made.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Any,
        document: str,
        base: Sequence,
        config: dict[str, Any],
        revision: str,
        clock: Clock,
        talk: Sequence | None = None,
    ):
        """config: what the record says of how the document was read, its `chat` and `chunk` among it."""
        self.runner, self.tokenizer, self.document = runner, tokenizer, document
        self.base, self.talk = base, talk
        self.config, self.revision = config, revision
        self.clock, self.closed = clock, False

    @classmethod
    def read(
        cls,
        runner: Runner,
        tokenizer: Any,
        document: str,
        tokens: list[int],
        method: Method,
        plan: Plan,
        config: dict[str, Any],
        revision: str,
    ) -> "Session":
        """Read the document. Interrupted has a record without an answer."""
        clock = Clock()
        base = runner.open(tokens, method, plan, Sampling(), 0)
        try:
            runner.prefill(base)
        except KeyboardInterrupt:
            whole = record(runner, [base], clock, config, revision, 0, interrupted=True)
            raise Interrupted([Result("", [], whole)]) from None
        clock.filled(runner.cache.pool.held_bytes)
        return cls(runner, tokenizer, document, base, config, revision, clock)

    @property
    def prefill_s(self) -> float:
        """Seconds that reading the document took."""
        return self.clock.prefill or 0.0

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Result:
        """The answer to one question about the document; the kept cache and the conversation stay as they were.

        Its cost is the question's and the answer's tokens: `record.timings.ttft_s` counts them, not the document;
        `prefill_s` is the document's. Raises UsageError, PoolExhausted, NotFinite; Interrupted has the partial result.
        """
        self._check(question, "question")
        after = encode(self.tokenizer, self.document, question, after=True, chat=self.config["chat"]).after
        result, sequence = self._answer(self.base, after, max_new_tokens, Sampling(temperature, top_p, seed, top_k))
        self.runner.cache.release(sequence.rows)
        return result

    def turn(
        self,
        message: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Result:
        """The answer to the conversation's next message; message and answer are read into the conversation's cache.

        What the method does after every later pass is done here too. The last token of an answer is read with the next
        turn; an end token is not, the template ends an answer in its own way. A turn that fails or is interrupted
        leaves the conversation as it was. Raises as `ask` does.
        """
        self._check(message, "message")
        chat = self.config["chat"]
        if self.talk is None:
            after = encode(self.tokenizer, self.document, message, after=True, chat=chat).after
        else:
            after = follow(self.tokenizer, message, chat=chat)
            last = self.talk.tokens[-1]
            after = after if last in self.runner.stop else [last, *after]
        sampling = Sampling(temperature, top_p, seed, top_k)
        result, sequence = self._answer(self.talk or self.base, after, max_new_tokens, sampling)
        if self.talk is not None:
            self.runner.cache.release(self.talk.rows)
        self.talk = sequence
        return result

    def fork(self) -> "Session":
        """A second session that goes on from here; its own pages are those that it writes to."""
        self._check("fork", "fork")
        copy = lambda sequence: self.runner.fork(sequence, Sampling(), 0)  # noqa: E731
        talk = None if self.talk is None else copy(self.talk)
        return Session(
            self.runner,
            self.tokenizer,
            self.document,
            copy(self.base),
            self.config,
            self.revision,
            Clock(prefill=self.prefill_s, held=self.clock.held),
            talk,
        )

    def save(self, path: str | Path) -> None:
        """Write document, conversation and kept cache to one safetensors file, whole or not at all.

        `Engine.resume` goes on from it token for token. Raises UsageError; KvfootError where it cannot be written.
        """
        from kvfoot.engine.saved import save

        self._check("save", "save")
        if not self.base.plan.storage.plain:
            raise UsageError(
                "a cache stored in few bits or on the host has no file yet: save one without store and values"
            )
        save(self, Path(path))

    def close(self) -> None:
        """Give the kept pages back."""
        if self.closed:
            return
        self.closed = True
        for sequence in (self.base, self.talk):
            if sequence is not None:
                self.runner.cache.release(sequence.rows)

    def _check(self, words: str, what: str) -> None:
        if self.closed:
            raise UsageError("the session is closed")
        if not words.strip():
            raise UsageError(f"the {what} is empty")

    def _answer(self, start: Sequence, after: list[int], limit: int, sampling: Sampling) -> tuple[Result, Sequence]:
        """Read `after` on a fork of `start` and generate; the fork is the caller's to keep or to release."""
        runner = self.runner
        if limit < 1:
            raise UsageError(f"max_new_tokens={limit}: give at least 1")
        check_replay(start.method, runner.cache.geometry, sampling)
        check_length(runner.cache.geometry.positions, start.rows.seen + len(after), limit)
        sequence = runner.fork(start, sampling, 0)
        sequence.anew()  # as it does on a cache from a file
        if start is not self.base:  # the last token was generated and not read: it comes first in `after`, if at all
            sequence.tokens.pop()
        sequence.prompt = start.rows.seen
        clock = Clock(prefill=self.prefill_s, held=self.clock.held)
        done = interrupted = False
        try:
            logits = runner.feed(sequence, after, self.config["chunk"])
            runner.decode([sequence], [logits], limit, sampling, clock)
            forget(runner, sequence, sequence.rows.seen + 1 - len(sequence.tokens))
            done = True
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if not done:
                runner.cache.release(sequence.rows)
        config = self.config | {
            "question": "after",
            "max_new_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
        whole = record(runner, [sequence], clock, config, self.revision, sampling.seed, interrupted)
        result = Result(text(self.tokenizer, sequence.generated), sequence.generated, whole)
        if interrupted:
            raise Interrupted([result])
        return result, sequence
