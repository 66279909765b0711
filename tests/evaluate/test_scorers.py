"""Scores against values worked out by hand; among them what surprises in the public scripts."""

import math

import pytest

from kvfoot.core.errors import UsageError
from kvfoot.evaluate import scorers as s

CASES = {
    "normalize": [
        ("The Cat", "cat"),
        ("a cat, an apple, the end", "cat apple end"),
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),  # punctuation goes before articles are looked for
        ("The-end", "theend"),
        ("A.", ""),
        ("  two \n  lines\t", "two lines"),
        ("théâtre", "théâtre"),
        ("another theory", "another theory"),  # articles are whole words
        ("“quoted”", "“quoted”"),  # only ASCII punctuation
    ],
    "exact": [
        ("Paris", ["paris"], 1),
        ("The Paris.", ["paris"], 1),
        ("Paris, France", ["Paris"], 0),
        ("", ["the"], 1),
        ("B", ["A", "b"], 1),
        ("1,204", ["1204"], 1),
        ("12 04", ["1204"], 0),
        ("x b", ["b x"], 0),
    ],
    "substring": [
        ("It is Paris.", ["paris"], 1),
        ("comparison", ["paris"], 1),  # inside a word
        ("par is", ["paris"], 0),
        ("Parking", ["paris", "king"], 1),
        ("the U.S.", ["us"], 1),
        ("anything", ["the"], 1),  # normalizes to nothing
        ("", ["paris"], 0),
        ("well known", ["well-known"], 0),
        ("pass key is 71,432.", ["71432"], 1),
    ],
    "contains": [
        ("It is PARIS", ["paris"], 1),
        ("It is Pa-ris", ["paris"], 0),
        ("71,432", ["71432"], 0),  # punctuation counts here
        ("714321", ["71432"], 1),
        ("a", ["b", "A"], 1),
        ("", ["x"], 0),
        ("the end", ["The End"], 1),
        ("the  end", ["the end"], 0),
    ],
    "recall": [
        ("1, 2, 3, 4", ["1", "2", "3", "4"], 1),
        ("1, 2", ["1", "2", "3", "4"], 0.5),
        ("12 3", ["1", "2", "3", "4"], 0.75),  # inside a longer number
        ("2 2 2 2", ["1", "2", "3", "4"], 0.25),  # repetition earns nothing
        ("1 2 3 4 5 6 7 8 9", ["1", "2"], 1),  # nor does it cost
        ("ABC", ["abc", "x"], 0.5),
        ("", ["a"], 0),
        ("bird", ["bird", "bird"], 1),
    ],
    "f1": [
        ("the cat sat", ["cat sat"], 1),
        ("cat", ["cat sat"], 2 / 3),
        ("cat cat", ["cat"], 2 / 3),
        ("cat cat sat", ["cat cat dog"], 2 / 3),
        ("dog", ["cat"], 0),
        ("", ["cat"], 0),
        ("the", ["a"], 0),  # both normalize to nothing
        ("yes it is", ["yes"], 0.5),
        ("x", ["y", "X."], 1),
    ],
    "strict f1": [
        ("yes it is", ["yes"], 0),
        ("yes", ["Yes."], 1),
        ("no", ["no answer"], 0),
        ("noanswer", ["no-answer"], 1),
        ("cat", ["cat sat"], 2 / 3),
        ("it is yes", ["it is no"], 2 / 3),  # neither side is closed as a whole
        ("no", ["cat"], 0),
        ("the cat", ["cat"], 1),
    ],
    "rouge": [
        ("the cat sat", ["the cat sat"], 1),
        ("the cat", ["the cat sat"], 0.8),
        ("sat cat the", ["the cat sat"], 1 / 3),
        ("a b c d", ["a x b y c"], 6 / 9),
        ("", ["a"], 0),
        ("!!", ["a"], 0),
        ("Cats-sat", ["cats sat"], 1),
        ("cat", ["cats"], 0),  # not stemmed
        ("a a b", ["a b b"], 2 / 3),
        ("x", ["y", "x"], 1),
    ],
    "lines f1": [
        ("a\nb", ["a\nb"], 1),
        ("b\na", ["a\nb"], 1),
        ("a", ["a\nb"], 2 / 3),
        ("a\na", ["a\nb"], 0.5),  # a repeated row counts once
        ("a\nb\nc\nd", ["a\nb"], 2 / 3),
        ("a  x\t1", ["a x 1"], 1),
        ("", ["a"], 0),
        ("A", ["a"], 0),
        ("\n a \n\n", ["a"], 1),
    ],
    "numbers": [
        ("7", ["7"], 1),
        ("It is 7, not 8", ["7"], 0.5),
        ("Paragraph 12", ["Paragraph 12"], 1),
        ("Paragraph 1", ["Paragraph 12"], 0),
        ("none", ["7"], 0),
        ("7 7 8", ["7"], 2 / 3),
        ("07", ["7"], 0),  # as text
        ("3 4", ["Paragraph 4"], 0.5),
    ],
    "code line": [
        ("x = 1", ["x = 1"], 1),
        ("# why\nx = 1", ["x = 1"], 1),
        ("```python\nx = 1\n```", ["x = 1"], 1),
        ("// no\n", ["x"], 0),
        ("x = 1\ny = 2", ["y = 2"], 0.6),
        ("\n\nx = 1", ["x = 1"], 1),
        ("abcd", ["abce"], 0.75),
        ("x = 1  # one", ["x = 1"], 0),  # a line with a comment is passed over
    ],
}


@pytest.mark.parametrize(("text", "wanted"), CASES["normalize"])
def test_normalize(text, wanted):
    assert s.normalize(text) == wanted


@pytest.mark.parametrize("name", [name for name in CASES if name != "normalize"])
def test_scores_by_hand(name):
    assert len(CASES[name]) >= 8
    for prediction, references, wanted in CASES[name]:
        assert s.find_scorer(name)(prediction, references) == pytest.approx(wanted), (prediction, references)


def test_every_scorer_has_cases():
    assert set(s.SCORERS) == set(CASES) - {"normalize"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3 > 1 > 2", ["3", "1", "2"]),
        ("Ranking: ID3 > ID1", ["3", "1"]),
        ("[ID: 12] > [ID: 7]", ["12", "7"]),
        ("3>1>3", ["3", "1"]),
        ("first 9, then 3 > 1", ["3", "1"]),  # the longest run, not the first
        ("no numbers", []),
        ("", []),
        ("5", ["5"]),
        ("1 > 2\n3 > 4 > 5", ["3", "4", "5"]),
    ],
)
def test_ranking(text, wanted):
    assert s.ranking(text) == wanted


def test_ndcg_by_hand():
    grades = {"a": 3, "b": 2, "c": 0}
    ideal = 3 + 2 / math.log2(3)
    cases = [
        (["a", "b", "c"], 1.0),
        (["b", "a"], (2 + 3 / math.log2(3)) / ideal),
        (["c", "a", "b"], (3 / math.log2(3) + 2 / 2) / ideal),
        (["c"], 0.0),
        ([], 0.0),
        (["x", "y", "a"], (3 / 2) / ideal),
        ([*"defghijklm", "a"], 0.0),  # the eleventh place
        (["a"], 3 / ideal),
        ([*"defghijkl", "a"], 3 / math.log2(11) / ideal),
    ]
    for order, wanted in cases:
        assert s.ndcg(order, grades) == pytest.approx(wanted), order
    assert s.ndcg(["c"], {"c": 0}) == 0


@pytest.mark.parametrize(
    ("text", "reference", "wanted"),
    [
        ("Date", "Date", 1),
        ("Date or Place", "Date", 0.5),
        ("It is a Date.", "Date", 1),
        ("Place", "Date", 0),
        ("", "Date", 0),
        ("Dates", "Dates", 1),  # Date is found too, and forgiven
        ("Date Dates", "Date", 0.5),  # Dates is not a part of Date
        ("date", "Date", 0),  # case counts
        ("Date Place Person", "Person", 1 / 3),
    ],
)
def test_label(text, reference, wanted):
    assert s.label(text, reference, ["Date", "Dates", "Place", "Person"]) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Answer: Paris", "Paris"),
        ("answer:Paris\nmore", "Paris"),
        ("Paris\nmore", "Paris"),
        ("Well. Answer: Paris", "Paris"),
        ("Answer: Answer: Paris", "Paris"),
        ("", ""),
        (" Paris ", "Paris"),
        ("Answer:\nParis", ""),
    ],
)
def test_after_reads_one_line(text, wanted):
    assert s.after(text, "Answer:") == wanted


def test_bad_requests():
    with pytest.raises(UsageError, match="did you mean rouge"):
        s.find_scorer("rogue")
    for name in s.SCORERS:
        with pytest.raises(UsageError, match="without reference answers"):
            s.find_scorer(name)("x", [])
