"""Nothing that evaluation uses was trained on: books, words, towns, phrasings."""

import random
import re

import pytest

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.tasks import phrases_train, places, read_corpus
from kvfoot.evaluate.tasks.phrases_eval import DEV, TEST
from kvfoot.evaluate.tasks.split import DEV_BOOKS, SIDES, TEST_BOOKS, book_side, word_side


def training_phrases():
    found = set()
    for name, value in vars(phrases_train).items():
        if name.isupper():
            for entry in value:
                found.update([entry] if isinstance(entry, str) else entry)
    return found


def test_books_words_and_towns_of_the_sides_are_disjoint(data):
    corpora = [read_corpus(data, side) for side in SIDES]
    assert [len(corpus.books) for corpus in corpora] == [2, 1, 1]
    assert [len(corpus.vocabulary.towns) for corpus in corpora] == [0, 31, 30]
    for kind in (
        lambda corpus: set(corpus.books),
        lambda corpus: set(corpus.vocabulary.words),
        lambda corpus: set(corpus.vocabulary.towns),
    ):
        sets = [kind(corpus) for corpus in corpora]
        assert len(set().union(*sets)) == sum(map(len, sets))
    assert len(set(DEV_BOOKS) | set(TEST_BOOKS)) == 10


def test_words_are_split_about_62_19_19():
    rng = random.Random(1)
    words = {"".join(rng.choices("abcdefgh", k=8)) for _ in range(4000)}
    shares = {side: sum(word_side(word) == side for word in words) / len(words) for side in SIDES}
    assert abs(shares["train"] - 160 / 256) < 0.03
    assert abs(shares["dev"] - 48 / 256) < 0.03


def test_made_up_towns_of_the_sides_are_disjoint():
    rng = random.Random(2)
    made = {side: {places.made_up(rng, side) for _ in range(3000)} for side in SIDES}
    assert len(made["train"]) > 2000
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        words = [{word for name in made[side] for word in name.split()} for side in (a, b)]
        assert not words[0] & words[1]


def test_phrasings_of_the_sides_are_disjoint():
    train, dev, test = training_phrases(), DEV.phrases(), TEST.phrases()
    assert len(train) > 250
    assert len(dev) >= 18
    assert len(test) >= 28
    assert not train & dev
    assert not train & test
    assert not dev & test
    # nor is a held-out sentence part of a training one, once the places for entities are taken out
    bare = [re.sub(r"\{\w+\}", "*", text).strip().lower() for text in dev | test]
    trained = " | ".join(re.sub(r"\{\w+\}", "*", text).lower() for text in train)
    assert [text for text in bare if len(text) > 12 and text in trained] == []


def test_a_book_that_is_not_named_is_for_training():
    assert book_side("somebody_something") == "train"
    assert book_side(DEV_BOOKS[2]) == "dev"
    assert book_side(TEST_BOOKS[2]) == "test"


def test_a_missing_folder_says_what_is_missing(tmp_path, data):
    with pytest.raises(UsageError, match=r"books has no \*\.txt\.gz books"):
        read_corpus(tmp_path, "train")
    (tmp_path / "books").symlink_to(data / "books")
    with pytest.raises(UsageError, match=r"nounlist\.txt is missing"):
        read_corpus(tmp_path, "train")
    (tmp_path / "words").symlink_to(data / "words")
    assert len(read_corpus(tmp_path, "train").books) == 2
    with pytest.raises(UsageError, match="takes its town names from it"):
        read_corpus(tmp_path, "dev")
