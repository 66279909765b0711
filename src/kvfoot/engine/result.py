"""What a run gives back."""

from dataclasses import dataclass

from kvfoot.core.records import RunRecord


@dataclass(frozen=True)
class Result:
    """text without special tokens; tokens as generated, the end token included; the record (a batch shares one)."""

    text: str
    tokens: list[int]
    record: RunRecord


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run: `results` is what was done so far, the record marked interrupted."""

    def __init__(self, results: list[Result]):
        super().__init__("interrupted")
        self.results = results
