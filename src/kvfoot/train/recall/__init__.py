"""The recipe of kvfoot-recall: a small model that looks things up in a long context (docs/recall.md)."""

from kvfoot.train.recall.options import RecallOptions

__all__ = ["RecallOptions"]
