"""Scores of free text against references, by the rules of the public benchmarks: SQuAD, RULER, HELMET, LongBench.

Every scorer takes (prediction, references) and answers in [0, 1]; where several references are given, the best one
counts, except for `recall`, where all of them are asked for. Rules that surprise are named beside the function.
"""

from __future__ import annotations

import difflib
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from kvfoot.core.errors import UsageError, did_you_mean

Scorer = Callable[[str, Sequence[str]], float]

ARTICLES = re.compile(r"\b(a|an|the)\b")
WORD = re.compile(r"[^a-z0-9]+")
CLOSED = frozenset({"yes", "no", "noanswer"})


def normalize(text: str) -> str:
    """SQuAD's: lower case, then no ASCII punctuation, then no articles, then single spaces.

    In this order: "a-b" becomes "ab", and "The-end" is "theend", not "end".
    """
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", bare).split())


def best(score: Callable[[str, str], float], prediction: str, references: Sequence[str]) -> float:
    """The highest score over the references. `UsageError` where there are none."""
    if not references:
        raise UsageError("a sample without reference answers cannot be scored: give answers, or use agreement")
    return max(score(prediction, reference) for reference in references)


def exact(prediction: str, references: Sequence[str]) -> float:
    """Equal after `normalize`."""
    return best(lambda p, r: float(normalize(p) == normalize(r)), prediction, references)


def substring(prediction: str, references: Sequence[str]) -> float:
    """HELMET's substring exact match: a normalized reference is a part of the normalized prediction, word or not."""
    return best(lambda p, r: float(normalize(r) in normalize(p)), prediction, references)


def contains(prediction: str, references: Sequence[str]) -> float:
    """RULER's string_match_part: some reference occurs in the prediction; only the case is ignored."""
    return best(lambda p, r: float(r.lower() in p.lower()), prediction, references)


def recall(prediction: str, references: Sequence[str]) -> float:
    """RULER's string_match_all: the share of the references that occur in the prediction, the case ignored.

    A reference inside a longer word counts, a repetition counts once, and more words than asked for cost nothing.
    """
    if not references:
        raise UsageError("a sample without reference answers cannot be scored: give answers, or use agreement")
    found = prediction.lower()
    return sum(reference.lower() in found for reference in references) / len(references)


def overlap(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of two bags of tokens: a repeated token counts as often as it stands in both."""
    same = sum((Counter(prediction) & Counter(reference)).values())
    if same == 0:
        return 0.0
    precision, share = same / len(prediction), same / len(reference)
    return 2 * precision * share / (precision + share)


def f1(prediction: str, references: Sequence[str]) -> float:
    """SQuAD's token F1, as LongBench uses it. Two texts that normalize to nothing score 0."""
    return best(lambda p, r: overlap(normalize(p).split(), normalize(r).split()), prediction, references)


def strict_f1(prediction: str, references: Sequence[str]) -> float:
    """HELMET's F1: "yes", "no" and "no answer", on either side, are right or wrong as a whole."""

    def one(p: str, r: str) -> float:
        p, r = normalize(p), normalize(r)
        if p != r and (p in CLOSED or r in CLOSED):
            return 0.0
        return overlap(p.split(), r.split())

    return best(one, prediction, references)


def _longest(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for token in a:
        before = 0
        for j, other in enumerate(b, 1):
            kept = row[j]
            row[j] = before + 1 if token == other else max(row[j], row[j - 1])
            before = kept
    return row[-1]


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 (longest common subsequence) over runs of ASCII letters and digits, lower case.

    Words are not stemmed; with the Porter stemmer that HELMET switches on, scores are a little higher.
    """

    def one(p: str, r: str) -> float:
        a, b = (WORD.sub(" ", text.lower()).split() for text in (p, r))
        common = _longest(a, b)
        return 2 * common / (len(a) + len(b)) if common else 0.0

    return best(one, prediction, references)


def after(prediction: str, prefix: str) -> str:
    """HELMET's reading of a short answer: what follows `prefix` to the end of that line, else the first line."""
    found = re.search(f"(?:{re.escape(prefix)})(.*)(?:\n|$)", prediction, re.IGNORECASE)
    line = found[1] if found else prediction.split("\n", 1)[0]
    return re.sub(f"^{re.escape(prefix)}", "", line.strip(), flags=re.IGNORECASE).strip()


def lines_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 over the lines of a list, in any order; a line counts as often as the reference has it. Spaces are joined."""

    def rows(text: str) -> list[str]:
        return [" ".join(line.split()) for line in text.splitlines() if line.strip()]

    return best(lambda p, r: overlap(rows(p), rows(r)), prediction, references)


def ranking(prediction: str) -> list[str]:
    """The longest run "3 > 1 > 2" of a text, "ID", brackets and colons removed; each id once, its first place."""
    text = re.sub(r"[\[\]:]", "", prediction).lower().replace("id", "")
    runs = re.findall(r"\d+(?:\s*>\s*\d+)*", text)
    longest = max(runs, key=len, default="")
    return list(dict.fromkeys(number.strip() for number in longest.split(">") if number.strip()))


def ndcg(order: Sequence[str], grades: Mapping[str, int], at: int = 10) -> float:
    """NDCG@`at` as trec_eval has it: gain = grade, discount log2(1 + place); ids without a grade gain nothing."""

    def gain(values: Iterable[int]) -> float:
        return sum(value / math.log2(place + 2) for place, value in enumerate(list(values)[:at]))

    ideal = gain(sorted((grade for grade in grades.values() if grade > 0), reverse=True))
    return gain(max(0, grades.get(name, 0)) for name in order) / ideal if ideal else 0.0


def numbers(prediction: str, references: Sequence[str]) -> float:
    """LongBench's count and retrieval score: of all numbers in the prediction, the share that are the right one."""

    def one(p: str, r: str) -> float:
        said, wanted = re.findall(r"\d+", p), re.search(r"\d+", r)
        return said.count(wanted[0]) / len(said) if said and wanted else 0.0

    return best(one, prediction, references)


def label(prediction: str, reference: str, classes: Sequence[str]) -> float:
    """LongBench's classification: 1 over the class names found in the prediction, where the right one is among them.

    A class name that is a part of the right one ("Date" in "Dates") is not held against the answer.
    """
    found = [name for name in classes if name in prediction]
    found = [name for name in found if name == reference or name not in reference]
    return 1 / len(found) if reference in found else 0.0


def code_line(prediction: str, references: Sequence[str]) -> float:
    """LongBench's code similarity: the first line that is no comment and no fence, by difflib's ratio in hundredths."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((x for x in lines if "`" not in x and "#" not in x and "//" not in x), "")
    return best(lambda p, r: round(100 * difflib.SequenceMatcher(None, p, r).ratio()) / 100, line, references)


SCORERS: dict[str, Scorer] = {
    "code line": code_line,
    "contains": contains,
    "exact": exact,
    "f1": f1,
    "lines f1": lines_f1,
    "numbers": numbers,
    "recall": recall,
    "rouge": rouge_l,
    "strict f1": strict_f1,
    "substring": substring,
}


def find_scorer(name: str) -> Scorer:
    """A scorer by name; `UsageError` names the nearest ones."""
    if name not in SCORERS:
        raise UsageError(f"unknown metric {name!r}{did_you_mean(name, list(SCORERS))}")
    return SCORERS[name]
