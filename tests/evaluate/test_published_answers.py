"""The published tasks: answers stand in the text where and as often as they should, in the published wording."""

import itertools
import re
from collections import Counter

import pytest
from taskdata import book
from tokencount import COUNT

from kvfoot.evaluate.tasks.chainofkey import valid_prefix
from kvfoot.evaluate.tasks.published import GROUPS, published_task
from kvfoot.evaluate.tasks.restate import rows_f1
from kvfoot.evaluate.tasks.texts import read_texts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    (folder / "books").mkdir()
    (folder / "books" / "somebody_a-book.txt").write_text(book(3, 400_000))
    return folder


@pytest.mark.parametrize("name", GROUPS["niah"])
def test_needles_stand_in_the_text_once(name, data):
    task = published_task(name, data)
    for length, index in itertools.product((1024, 3000), range(3)):
        e = task.sample(index, length, 1, COUNT)
        answers = [unit.strip(" ,") for unit in (e.units or e.answers)]
        asked = re.search(r"for (.+?) mentioned", e.question)[1]
        keys = re.split(r", and |, ", asked)
        assert all(e.document.count(answer) == 1 for answer in answers)
        pairs = re.findall(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+)\.", e.document)
        assert len({value for _, value in pairs}) == len(pairs)
        if name == "niah_multivalue":
            assert [value for key, value in pairs if key == keys[0]] == answers  # in the text's order
        else:
            assert [dict(pairs)[key] for key in keys] == answers  # in the question's order
            assert all(Counter(key for key, _ in pairs)[key] == 1 for key in keys)
        expected = {"niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4}.get(name, 1)
        assert len(pairs) == expected if task.hay != "needles" else len(pairs) > 4
        if length == 1024 and index == 0 and name == "niah_single_1":
            assert e.document.startswith("A special magic number is hidden within the following text. Make sure to")
            assert e.question == f"What is the special magic number for {asked} mentioned in the provided text?"
            assert e.prefix == f"The special magic number for {asked} mentioned in the provided text is"
        if name == "niah_multivalue":
            assert e.document.startswith("Some special magic numbers are hidden within the following text.")
            assert e.question == f"What are all the special magic numbers for {asked} mentioned in the provided text?"


@pytest.mark.parametrize("name", ["niah_single_1", "niah_single_2", "niah_multikey_2", "passkey_noise", "json_kv"])
def test_depths_cover_the_text(name, data):
    task = published_task(name, data)
    depths = sorted(task.sample(i, 2048, 2, COUNT).figures["depth"] for i in range(16))
    assert depths[0] < 0.1
    assert depths[-1] > 0.9
    assert max(b - a for a, b in itertools.pairwise(depths)) < 0.15


def test_the_passkey_is_said_twice_and_json_holds_its_pair_once():
    e = published_task("passkey_noise").sample(3, 2048, 1, COUNT)
    assert e.document.count(e.answers[0].strip()) == 2
    for name in ("json_kv", "json_kv_numbers"):
        e = published_task(name).sample(3, 4096, 1, COUNT)
        pairs = re.findall(r'"([^"]+)": "([^"]+)"', e.document)
        assert len(pairs) == len(dict(pairs)) > 20
        shown = re.findall(r"Key: (\S+)\nCorresponding value: (\S+)\n", e.question)
        asked = e.question.rsplit("Key: ", 1)[1]
        assert len(shown) == 2
        assert all(dict(pairs)[key] == value for key, value in shown)
        assert asked not in [key for key, _ in shown]
        assert dict(pairs)[asked] == e.answers[0].strip()
        assert sum(e.answers[0].strip() in pair for pair in pairs) == 1


def test_variables_hand_the_value_on_in_order():
    e = published_task("vt").sample(0, 4096, 1, COUNT)
    example, text = e.document.split("\n\nMemorize and track", 1)
    names = [unit.strip() for unit in e.units]
    value = re.search(r"\d{5}", e.question)[0]
    lines = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in itertools.pairwise(names))]
    assert [line for line in text.split("\n") if line.startswith("VAR")] == lines
    assert value not in example
    assert COUNT([example]) <= 500
    assert e.score(" ".join(names[:3])) == pytest.approx(3 / 5)


def test_common_words_are_the_most_common():
    for length, often, seldom in ((2048, 6, 1), (8192, 30, 3)):
        e = published_task("cwe").sample(0, length, 1, COUNT)
        shown = e.document.split("Memorize the ones that appear most often.\n")[2]
        counts = Counter(re.findall(r"\d+\. ([a-z]+)", shown))
        answers = [unit.split(". ")[1] for unit in e.units]
        assert {counts[word] for word in answers} == {often}
        assert {n for word, n in counts.items() if word not in answers} == {seldom}


def test_frequent_words_are_ranked_as_they_occur():
    e = published_task("fwe").sample(0, 4096, 1, COUNT)
    coded = e.document.split("Find the three most frequently appeared coded words. ")[1].split()
    counts = Counter(coded).most_common(5)
    assert counts[0][0] == "..."
    assert [word for word, _ in counts[1:4]] == [unit.strip(" ,") for unit in e.units]
    assert counts[3][1] > counts[4][1]


def test_chain_of_key_has_one_successor_a_key_and_an_example_of_other_words():
    e = published_task("chain-of-key").sample(0, 4096, 1, COUNT)
    keys = [line.removeprefix("Name of key: ").split("-") for line in e.document.split("\n") if line.startswith("Name")]
    assert len(keys) == e.figures["keys"]
    assert Counter(a for a, _ in keys) == Counter(b for _, b in keys)
    assert max(Counter(a for a, _ in keys).values()) == 1
    example = re.search(r"Example of a chain: (.+)\n", e.document)[1]
    assert len(example.split(", ")) == 10
    assert not set(re.split(r"-|, ", example)) & {word for key in keys for word in key}
    successor = dict(keys)
    chain, word = [], keys[5][0]
    for _ in range(12):
        chain.append(f"{word}-{successor[word]}")
        word = successor[word]
    assert e.score(" " + ", ".join(chain[:10])) == 1
    assert e.score(example) == 0
    assert e.question.startswith("Below is a list of keys")
    assert "Example" not in e.question


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a-b, b-c, c-d", 0.3),
        ("b-c", 0.1),
        ("a-b, c-d", 0.1),  # stops at the first break
        ("c-d, b-c, a-b", 0.1),  # the right keys in the wrong order
        ("x-y, a-b", 0),  # not in the context
        ("", 0),
        (" a-b\nb-c.", 0.2),
        ('"A-B", b-c', 0.2),
        ("a-b, b-c, c-d, d-a, a-b, b-c, c-d, d-a, a-b, b-c, c-d", 1),  # no more than ten count
        ("a-b a-b", 0),
        ("a-b,, b-c", 0.1),
    ],
)
def test_valid_prefix_by_hand(text, wanted):
    assert valid_prefix(text, frozenset({"a-b", "b-c", "c-d", "d-a"}), 10) == pytest.approx(wanted)


def test_chain_of_key_on_the_paper_s_three_patterns():
    """A whole chain; the example copied, of which two keys are in the context; the right keys, the fourth too early."""
    letters = "abcdefghijk"
    chain = [f"{a}-{b}" for a, b in itertools.pairwise(letters)]
    context = frozenset(chain)
    assert valid_prefix(", ".join(chain), context, 10) == 1
    assert valid_prefix(", ".join([*chain[:2], *(f"{c}x-{c}y" for c in letters[2:10])]), context, 10) == 0.2
    moved = [*chain[:3], chain[4], chain[3], *chain[5:]]
    assert valid_prefix(", ".join(moved), context, 10) == 0.3


def test_labels_follow_the_word_that_a_sentence_shares(data):
    e = published_task("icl", data).sample(0, 8192, 1, COUNT)
    shots = [shot.rsplit("\nlabel: ", 1) for shot in e.document.split("nothing else. \n\n")[1].split("\n\n")]
    labels = Counter(label for _, label in shots)
    assert len(labels) == 6
    assert max(labels.values()) - min(labels.values()) <= 1
    assert e.question not in [text for text, _ in shots]
    same = [set(text.split()) for text, label in shots if label == e.answers[0].strip()]
    shared = set.intersection(*({word.strip(".").lower() for word in text} for text in same))
    assert shared & {word.strip(".").lower() for word in e.question.split()}


def test_restated_rows_are_the_records(data):
    e = published_task("restate").sample(0, 4096, 1, COUNT)
    records = re.findall(r"The (\S+) weighs (\d+) grams, stands in hall (\d+) and costs (\d+) coins\.", e.document)
    assert [tuple(row.strip().split("\t")) for row in e.units] == records
    half = "".join(e.units[: len(e.units) // 2])
    assert e.score(half) == pytest.approx(2 * (len(records) // 2) / (len(records) // 2 + len(records)))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\na\t1\nb\t2", 1),
        ("b\t2\na\t1", 1),
        ("a\t1", 2 / 3),
        ("a\t1\na\t1", 0.5),
        ("a\t2\nb\t2", 0.5),
        ("```tsv\nname\tweight\thall\tprice\na\t1\nb\t2\n```", 1),
        ("", 0),
        ("a 1\nb 2", 1),  # blanks for tabs
        ("a\t1\nb\t2\nThat is all.", 0.8),
    ],
)
def test_rows_f1_by_hand(text, wanted):
    assert rows_f1(text, "\na\t1\nb\t2") == pytest.approx(wanted)


def test_perplexity_scores_the_tail_of_a_passage(data):
    task = published_task("perplexity", data)
    e = task.sample(0, 4096, 1, COUNT)
    assert 0.98 * 256 <= COUNT(list(e.answers)) <= 256
    whole = read_texts(data, "perplexity").contents[0]
    assert (e.document + e.answers[0]) in whole + " " + whole
    assert task.chat is False
