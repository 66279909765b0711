"""The published tasks: lengths met in the tokens of two tokenizers, determinism, names, bad requests."""

import itertools
import re
from pathlib import Path

import pytest
from taskdata import book
from tokencount import COUNT, TOKENIZERS, counter, tokens

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.tasks.measure import largest
from kvfoot.evaluate.tasks.published import GROUPS, MADE, NAMES, expand, published_task
from kvfoot.evaluate.tasks.texts import words

RULER = GROUPS["ruler"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    (folder / "books").mkdir()
    (folder / "books" / "somebody_a-book.txt").write_text(book(3, 400_000))
    return folder


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", RULER)
def test_ruler_reaches_its_length_and_never_exceeds_it(name, kind, data):
    task, tokenizer = published_task(name, data), TOKENIZERS[kind]
    count = counter(tokenizer)
    lengths = (1024, 2048, 8192) if kind == "shipped" else (8192,)
    for length in lengths:
        for index in range(2):
            size = tokens(task.sample(index, length, 5, count), tokenizer)
            assert 0.98 * length <= size <= length, (length, index)


@pytest.mark.parametrize("name", [name for name in MADE if name not in RULER])
def test_the_others_never_exceed_it_and_miss_it_by_one_record_at_most(name, data):
    task = published_task(name, data)
    for length in (1024, 3000):
        for index in range(2):
            size = tokens(task.sample(index, length, 5, COUNT))
            assert length - 100 <= size <= length


@pytest.mark.parametrize("name", MADE)
def test_a_sample_is_a_function_of_seed_and_length(name, data):
    task = published_task(name, data)
    plain = lambda e: (e.document, e.question, e.answers, e.units, e.prefix, e.room, e.figures)  # noqa: E731
    first = plain(task.sample(1, 2048, 3, COUNT))
    assert plain(published_task(name, data).sample(1, 2048, 3, COUNT)) == first
    others = [task.sample(2, 2048, 3, COUNT), task.sample(1, 2048, 4, COUNT), task.sample(1, 1536, 3, COUNT)]
    assert all(plain(other) != first for other in others)


@pytest.mark.parametrize("name", MADE)
def test_a_task_says_what_a_sweep_asks(name, data):
    task = published_task(name, data)
    assert task.name == name
    assert task.category in ("recall", "long output", "in-context learning", "text")
    example = task.sample(0, 2048, 0, COUNT)
    assert (example.score is None) == (task.metric in ("exact", "likelihood"))
    if task.metric == "exact":
        assert example.prefix
        assert example.answers[0].startswith(" ")
    if example.units:
        assert "".join(example.units) == example.answers[0]
    if example.score and example.answers:
        assert example.score(example.answers[0]) == 1
        assert example.score("") == 0
    assert example.room >= COUNT(list(example.answers[:1]))


def test_the_beginning_of_the_answer_can_end_the_question():
    plain, asking = (published_task(name).sample(0, 2048, 1, COUNT) for name in ("vt", "vt:question"))
    assert asking.document == plain.document
    assert asking.question == f"{plain.question}\n{plain.prefix}"
    assert asking.prefix == ""
    assert 0.98 * 2048 <= tokens(asking) <= 2048
    task = published_task("vt:question")
    assert (task.name, task.category, task.metric, task.chat) == ("vt:question", "recall", "recall", None)
    with pytest.raises(UsageError, match="vt has no form 'ask': write vt or vt:question"):
        published_task("vt:ask")
    with pytest.raises(UsageError, match="perplexity has no form"):
        published_task("perplexity:question")


def test_names_and_groups():
    assert len(RULER) == 11
    assert set(expand(["ruler", "vt", "longproc"])) <= set(NAMES)
    assert expand(["recall.jsonl"]) == ["recall.jsonl"]
    assert len(set(NAMES)) == len(NAMES)
    assert all(name in NAMES for names in GROUPS.values() for name in names)


def test_largest_meets_any_slope():
    for per, length in itertools.product((1, 3, 17, 250), (100, 1000, 100_000)):
        size = largest("x", lambda n, per=per: 40 + per * n, length)
        assert 40 + per * size <= length
        assert length - (40 + per * (size + 1)) < max(1, length // 500)
    assert largest("x", lambda n: n, 1000, most=7) == 7
    jumps = lambda n: 10 + 7 * n + (n % 5) * 3  # noqa: E731
    assert jumps(largest("x", jumps, 5000)) <= 5000


def test_bad_requests(data, tmp_path):
    with pytest.raises(UsageError, match="did you mean niah_single_1"):
        published_task("niah_single1")
    with pytest.raises(UsageError, match="niah_single_2 needs running text: name a folder"):
        published_task("niah_single_2").sample(0, 4096, 0, COUNT)
    with pytest.raises(UsageError, match="no such folder"):
        published_task("icl", tmp_path / "no").sample(0, 4096, 0, COUNT)
    with pytest.raises(UsageError, match=r"has a \.txt"):
        published_task("icl", tmp_path).sample(0, 4096, 0, COUNT)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 is not UTF-8")
    with pytest.raises(UsageError, match=r"latin\.txt: not a UTF-8 text"):
        published_task("icl", tmp_path).sample(0, 4096, 0, COUNT)
    with pytest.raises(UsageError, match="cwe does not fit into 300 tokens"):
        published_task("cwe").sample(0, 300, 0, COUNT)
    with pytest.raises(UsageError, match="has words for fewer than 200000 tokens"):
        published_task("chain-of-key").sample(0, 200_000, 0, COUNT)
    with pytest.raises(UsageError, match="scores 256 tokens: ask for at least 512"):
        published_task("perplexity", data).sample(0, 400, 0, COUNT)


def test_the_word_lists_are_single_lower_case_words():
    assert all(re.fullmatch(r"[a-z]+", word) for kind in ("noun", "adjective", "verb") for word in words(kind))
    assert len(words("noun")) > 6000


def test_the_table_of_the_docs_is_the_tasks():
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ((?:\w|-|\.|, _)+) \| ([\w -]+) \| ([\w@ ]+) \| .* \|$", page, re.M)
    found = {}
    for names, category, metric in table:
        first, *more = names.split(", ")
        stem = next((p for p in ("helmet", "longbench") if first.startswith(p)), first.rsplit("_", 1)[0])
        for name in (first, *(stem + part for part in more)):
            found[name] = (category, metric)
    del found["task"]
    tasks = {name: published_task(name) for name in NAMES}
    assert found == {name: (task.category, task.metric) for name, task in tasks.items()}
    without = {"perplexity", "longbench_lcc", "longbench_repobench-p", "longbench_samsum", "longbench_trec"}
    chats = {name for name, task in tasks.items() if task.chat is False and not name.startswith("helmet")}
    assert chats == without | {"longbench_triviaqa"}
