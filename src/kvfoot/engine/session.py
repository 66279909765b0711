"""One document read once; many questions on what was kept of it."""

from typing import Any

from kvfoot.core.errors import UsageError
from kvfoot.core.hooks import Method, Plan
from kvfoot.engine.account import record
from kvfoot.engine.clock import Clock
from kvfoot.engine.prompts import check_length, encode, text
from kvfoot.engine.replay import check as check_replay
from kvfoot.engine.result import Interrupted, Result
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling


class Session:
    """A kept cache to ask about. Every question starts from the same entries: pages are shared until written to.

    Interrupted, raised while the document is read, has a record without an answer.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Any,
        document: str,
        tokens: list[int],
        method: Method,
        plan: Plan,
        config: dict[str, Any],
        revision: str,
    ):
        """config: what the record says of how the document was read, its `chat` and `chunk` among it."""
        self.runner, self.tokenizer, self.document = runner, tokenizer, document
        self.config, self.revision = config, revision
        self.clock, self.closed = Clock(), False
        self.base = runner.open(tokens, method, plan, Sampling(), 0)
        try:
            runner.prefill(self.base)
        except KeyboardInterrupt:
            whole = record(runner, [self.base], self.clock, config, revision, 0, interrupted=True)
            raise Interrupted([Result("", [], whole)]) from None
        self.clock.filled(runner.cache.pool.held_bytes)

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
        seed: int = 0,
    ) -> Result:
        """The answer to one question about the document; the kept cache stays as it was.

        Its cost is the question's and the answer's tokens: `record.timings.ttft_s` counts them, not the document;
        `prefill_s` is the document's. Raises UsageError, PoolExhausted, NotFinite; Interrupted has the partial result.
        """
        sampling = Sampling(temperature, top_p, seed)
        check_replay(self.base.method, self.runner.cache.geometry, sampling)
        if self.closed:
            raise UsageError("the session is closed")
        if not question.strip():
            raise UsageError("the question is empty")
        after = encode(self.tokenizer, self.document, question, after=True, chat=self.config["chat"]).after
        runner = self.runner
        check_length(runner.cache.geometry.positions, self.base.prompt + len(after), max_new_tokens)
        sequence = runner.fork(self.base, sampling, 0)
        clock = Clock(prefill=self.prefill_s, held=self.clock.held)
        interrupted = False
        try:
            logits = runner.feed(sequence, after, self.config["chunk"])
            runner.decode([sequence], [logits], max_new_tokens, sampling, clock)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            runner.cache.release(sequence.rows)
        config = self.config | {
            "question": "after",
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
        }
        whole = record(runner, [sequence], clock, config, self.revision, seed, interrupted)
        result = Result(text(self.tokenizer, sequence.generated), sequence.generated, whole)
        if interrupted:
            raise Interrupted([result])
        return result

    def close(self) -> None:
        """Give the kept pages back."""
        if self.closed:
            return
        self.closed = True
        self.runner.cache.release(self.base.rows)
