"""The terminal: progress and tables go to the standard error, text to the standard output."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from kvfoot.engine.engine import Engine
    from kvfoot.engine.runner import Event


WIDE = 140
"""Columns where nobody watches: a table in a file or a pipe is not broken to fit a screen."""


def stdout() -> "Console":
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDE)


def load(console: "Console", model: str, **options: Any) -> "Engine":
    """The engine, with a spinner and a line for everything slow."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with console.status(f"loading {model}"):
        from kvfoot.engine.engine import Engine

        return Engine.load(model, on_event=lambda line: console.print(line, style="dim", markup=False), **options)


class Watch:
    """A listener of the engine: a progress bar while prompts are read, then text as it comes.

    With `stream`, one sequence's text goes to the standard output token by token; without, a bar counts the tokens.
    """

    def __init__(self, console: "Console", tokenizer: Any, prompts: int = 1, stream: bool = True, label: str = ""):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from kvfoot.engine.prompts import Detokenizer

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(f"{label}reading", total=None)
        self._prompts, self._stream, self._label = prompts, stream, label
        self._text = Detokenizer(tokenizer) if stream else None
        self.shown = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The bar is shown inside; a line that was begun is ended, also when the run fails."""
        self._bar.start()
        try:
            yield
        finally:
            self._bar.stop()
            if self.shown and not self.shown.endswith("\n"):
                self._write("\n")

    def __call__(self, event: "Event") -> None:
        if event.kind == "prefill":
            which = f" prompt {event.sequence + 1} of {self._prompts}" if self._prompts > 1 else ""
            self._bar.update(
                self._task, description=f"{self._label}reading{which}", completed=event.done, total=event.total
            )
        elif self._text is not None:
            self._bar.stop()
            self._write(self._text.push(event.token))
        else:
            self._bar.update(self._task, description=f"{self._label}writing", completed=event.done, total=event.total)

    def finish(self, text: str) -> None:
        """What of the final text has not been shown: a last character that never became whole."""
        if text.startswith(self.shown):
            self._write(text[len(self.shown) :])

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self.shown += text
