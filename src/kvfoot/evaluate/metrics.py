"""Scores of an answer's text against accepted answers, for tasks that are not scored on tokens."""

import re
from collections.abc import Callable, Sequence

from kvfoot.core.errors import UsageError, did_you_mean

Metric = Callable[[str, Sequence[str]], float]


def words(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation."""
    return re.findall(r"\w+", text.lower())


def contains(answer: str, accepted: Sequence[str]) -> float:
    """Whether an accepted answer stands in the answer, whatever the case."""
    return float(any(a.strip().lower() in answer.lower() for a in accepted))


def same(answer: str, accepted: Sequence[str]) -> float:
    """Whether the answer is an accepted one, but for blanks around it."""
    return float(answer.strip() in [a.strip() for a in accepted])


def rouge(answer: str, accepted: Sequence[str]) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words, best of the accepted answers."""
    return max((_rouge(words(answer), words(a)) for a in accepted), default=0.0)


def _rouge(a: list[str], b: list[str]) -> float:
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, 1):
            above = row[j]
            row[j] = before + 1 if word == other else max(above, row[j - 1])
            before = above
    common = row[-1]
    return 2 * common / (len(a) + len(b)) if a and b else 0.0


METRICS: dict[str, Metric] = {"contains": contains, "rouge": rouge}


def scorer(metric: str, accepted: Sequence[str]) -> Callable[[str], float]:
    """Raises UsageError for an unknown metric."""
    if metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}{did_you_mean(metric, ['exact', *METRICS])}")
    return lambda answer: METRICS[metric](answer, accepted)
