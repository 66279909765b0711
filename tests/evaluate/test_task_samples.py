"""Every task at several lengths, with a tokenizer that counts words and marks: any tokenizer will do."""

import itertools
import re

import pytest

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.tasks import TASKS, find_task, read_corpus


def count(texts):
    return sum(len(re.findall(r"\w{1,4}|[^\w\s]|\n", text)) for text in texts)


def total(sample):
    return (
        count([sample.prompt])
        + sum(count([t.question, *t.units]) + 3 for t in sample.turns[1:])
        + count(sample.answers)
    )


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("json-uuids", "keys64")])
def test_a_sample_fits_its_length_and_is_a_function_of_its_seed(name, dev):
    task = find_task(name)
    length = 4096
    sample = task.sample(dev, count, length, seed=3)
    assert sample == task.sample(dev, count, length, seed=3)
    assert sample != task.sample(dev, count, length, seed=4)
    assert sample != task.sample(dev, count, length, seed=3, index=1)
    size = total(sample)
    assert size <= length * 1.02
    if name != "labels":  # its length is its shots
        assert size >= length * 0.8
    assert all(turn.answer.strip() for turn in sample.turns)


@pytest.mark.parametrize("length", [1024, 2048, 6000])
def test_length_follows_the_request(length, dev):
    for name in ("passkey", "chain", "table"):
        if name == "chain" and length == 1024:
            continue  # 32 hops need more room
        assert 0.75 * length <= total(find_task(name).sample(dev, count, length, 1)) <= 1.02 * length


def test_needles_are_in_the_context_once(dev):
    sample = find_task("keys16").sample(dev, count, 4096, 1)
    assert len(sample.turns) == 4
    for turn in sample.turns:
        assert len(re.findall(rf"\b{turn.answer.strip()}\b", sample.context)) == 1


def test_multivalue_lists_in_the_order_of_the_text(dev):
    for turn in (sample := find_task("multivalue").sample(dev, count, 4096, 1)).turns:
        values = [unit.strip(" ,") for unit in turn.units]
        assert len(values) == 4
        places = [sample.context.index(value) for value in values]
        assert places == sorted(places)


def test_a_chain_follows_the_words_to_the_named_end(dev):
    sample = find_task("chain").sample(dev, count, 4096, 1)
    keys = [unit.strip(' ,"').split("-") for unit in sample.answers]
    assert len(keys) == 32
    assert all(a[1] == b[0] for a, b in itertools.pairwise(keys))
    assert all(sample.context.count(f'"{a}-{b}"') == 1 for a, b in keys)
    assert f'"{keys[0][0]}"' in sample.question
    assert f'"{keys[-1][1]}"' in sample.question
    # every key has exactly one successor
    lines = re.findall(r'"(\w+)-(\w+)"', sample.context)
    assert sorted(a for a, _ in lines) == sorted(b for _, b in lines)
    assert len({a for a, _ in lines}) == len(lines) == sample.metadata["keys"]


def test_a_path_is_a_road_of_the_text(dev):
    sample = find_task("path").sample(dev, count, 8192, 1)
    steps = [re.fullmatch(r" ?From (.+), take a (\w+) to (.+)\.\n", unit).groups() for unit in sample.answers]
    assert 24 <= len(steps) <= 40
    for a, mode, b in steps:
        assert f"{a} is a lively city. You can travel from {a} to {b} by {mode}.\n" in sample.context
    assert all(x[2] == y[0] for x, y in itertools.pairwise(steps))


def test_variables_reach_the_value_hop_by_hop(dev):
    sample = find_task("variables").sample(dev, count, 2048, 1)
    for turn in sample.turns:
        names = [unit.strip(" ,") for unit in turn.units]
        assert len(names) == 4
        value = re.search(r"\d{5}", turn.question).group()
        chain = [f"VAR {names[0]} = {value}.", *(f"VAR {b} = VAR {a}." for a, b in itertools.pairwise(names))]
        places = [sample.context.index(line) for line in chain]
        assert places == sorted(places)


def test_a_table_spreads_over_the_context(dev):
    sample = find_task("table").sample(dev, count, 8192, 1)
    assert len(sample.answers) == sample.metadata["rows"] == 40
    places = [sample.context.index(unit.split("\t")[0]) for unit in sample.answers]
    assert places == sorted(places)
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert max(gaps) < 2 * min(gaps)


def test_passkey_depths_cover_the_context(dev):
    task = find_task("passkey")
    depths = []
    for index in range(12):
        sample = task.sample(dev, count, 2048, 1, index)
        depths.append(sample.context.index(sample.answers[0].strip()) / len(sample.context))
    assert min(depths) < 0.15
    assert max(depths) > 0.85


def test_labels_are_those_that_were_shown(dev):
    sample = find_task("labels").sample(dev, count, 4096, 1)
    assert len(sample.turns) == 16
    assert len({turn.answer for turn in sample.turns}) <= 6
    for turn in sample.turns:
        assert f"\n{turn.question}{turn.answer}" in sample.context


def test_bad_requests(data, dev):
    with pytest.raises(UsageError, match="did you mean keys4"):
        find_task("key4")
    with pytest.raises(UsageError, match="does not fit into 300 tokens"):
        find_task("chain").sample(dev, count, 300, 1)
    with pytest.raises(UsageError, match="has no evaluation wording"):
        find_task("keys4").sample(read_corpus(data, "train"), count, 2048, 1)
