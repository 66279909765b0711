"""The alias `recall`: the checkpoint that the package ships, through the engine, finds what it is asked for."""

from functools import cache
from typing import Any

import pytest

from kvfoot.core.errors import ModelError
from kvfoot.engine.engine import Engine
from kvfoot.evaluate.tasks import Corpus
from kvfoot.evaluate.tasks.corpus import Vocabulary
from kvfoot.evaluate.tasks.registry import Task, find_task
from kvfoot.models import load
from kvfoot.models.builtin import ALIASES, SHIPPED
from kvfoot.models.load import fingerprint

NOUNS = """
harbor violin meadow candle tunnel pepper saddle ribbon walnut lantern mirror basket thunder velvet compass anchor
feather kettle orchard pillow magnet canyon blanket trumpet glacier cushion whistle pebble curtain ladder
"""
ADJECTIVES = "quiet narrow golden hollow distant gentle frozen crooked polished ancient"
TEXT = (
    "The road ran along the river for an hour and then turned towards the hills. Nobody had mended it since the "
    "spring. A cart stood by the gate, and two men were talking about the price of hay. They did not look up. "
)


@cache
def engine() -> Engine:
    return Engine.load("recall", dtype="float32", device="cpu")


def answers(task: Task, length: int) -> list[tuple[str, str]]:
    """(what `full` writes, what is right) for every question of one sample."""
    nouns = tuple(NOUNS.split())
    words = Vocabulary("dev", tuple(ADJECTIVES.split()), nouns, nouns, ())
    corpus = Corpus("dev", {"roads": TEXT * 200}, words)

    def count(texts: list[str]) -> int:
        return sum(len(engine().tokenizer(text)["input_ids"]) for text in texts)

    sample = task.sample(corpus, count, length, seed=0)
    questions = [turn.question for turn in sample.turns]
    new = max(count([turn.answer]) for turn in sample.turns) + 2
    results: Any = engine().generate([sample.context] * len(questions), question=questions, max_new_tokens=new)
    return [(result.text, turn.answer) for result, turn in zip(results, sample.turns, strict=True)]


def test_it_is_an_alias_with_the_geometry_of_its_card() -> None:
    assert "recall" in ALIASES
    found = engine().geometry
    assert (found.layers, found.kv_heads, found.group, found.head_dim, found.positions) == (8, 3, 2, 64, 16384)
    assert engine().revision == fingerprint(SHIPPED["recall"])
    loaded = load.load("recall", dtype="float32", device="cpu")
    assert (loaded.name, loaded.source, loaded.tokenizer.chat_template[:7]) == ("recall", "builtin", "<|bos|>")


@pytest.mark.parametrize(("name", "length"), [("keys4", 1024), ("chain", 1024)])
def test_full_answers_what_evaluation_asks(name: str, length: int) -> None:
    for written, right in answers(find_task(name), length):
        assert written.strip() == right.strip()


def test_a_damaged_copy_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(load.SHIPPED, "recall", tmp_path)
    with pytest.raises(ModelError, match=r"no weights .*: install kvfoot again"):
        load.load("recall", device="cpu")
