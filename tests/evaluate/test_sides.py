"""Nothing that evaluation uses was trained on: books, words, towns, phrasings."""

import itertools
import random
import re

import pytest

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.tasks import phrases_train, places, read_corpus, records_train, wording_train
from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.registry import WORDINGS
from kvfoot.evaluate.tasks.split import BOOKS, SIDES, book_side, word_side


def training_words():
    """Everything that training phrasings are composed of."""
    found = set()
    for module in (phrases_train, records_train, wording_train):
        for name, value in vars(module).items():
            if name.isupper() and isinstance(value, tuple):
                for entry in value:
                    found.update([entry] if isinstance(entry, str) else entry)
    return found


FORMS = {
    "needle": lambda wording, draw: "".join(wording.needle(draw)),
    "passkey": lambda wording, draw: "".join(wording.passkey(draw)),
    "multi_query": lambda wording, draw: "".join(wording.multi_query(draw)),
    "json": lambda wording, draw: "".join(wording.json(draw)),
    "chain": lambda wording, draw: "".join(wording.chain(draw)),
    "path": lambda wording, draw: "".join(wording.path(draw)),
    "variables": lambda wording, draw: "".join(wording.variables(draw)),
    "labels": lambda wording, draw: wording.labels(draw),
    "table": lambda wording, draw: wording.table(draw) + str(wording.markup(draw, ["{one}", "{two}"])),
}


def drawn(data, family, count):
    corpus = read_corpus(data, "train")
    draw = Draw(f"forms/{family}", corpus, wording_train.TrainWording(), len)
    return [FORMS[family](draw.wording, draw) for _ in range(count)]


def test_books_words_and_towns_of_the_sides_are_disjoint(data):
    corpora = [read_corpus(data, side) for side in SIDES]
    assert [len(corpus.books) for corpus in corpora] == [2, 1, 1, 1]
    assert [len(corpus.vocabulary.towns) for corpus in corpora] == [0, 31, 30, 0]
    for kind in (
        lambda corpus: set(corpus.books),
        lambda corpus: set(corpus.vocabulary.words),
        lambda corpus: set(corpus.vocabulary.towns),
    ):
        sets = [kind(corpus) for corpus in corpora]
        assert len(set().union(*sets)) == sum(map(len, sets))
    assert len({name for names in BOOKS.values() for name in names}) == 15


def test_words_are_split_44_to_three_times_19():
    rng = random.Random(1)
    words = {"".join(rng.choices("abcdefgh", k=8)) for _ in range(4000)}
    shares = {side: sum(word_side(word) == side for word in words) / len(words) for side in SIDES}
    assert abs(shares["train"] - 112 / 256) < 0.03
    assert all(abs(shares[side] - 48 / 256) < 0.03 for side in SIDES[1:])


def test_made_up_words_of_training_are_no_held_out_words(data):
    corpus = read_corpus(data, "train")
    draw = Draw("words", corpus, wording_train.TrainWording(), len)
    words = {draw.word() for _ in range(2000)}
    assert len(words - set(corpus.vocabulary.words)) > 100
    assert {word_side(word) for word in words} == {"train"}


def test_made_up_towns_of_the_sides_are_disjoint():
    rng = random.Random(2)
    made = {side: {places.made_up(rng, side) for _ in range(3000)} for side in SIDES}
    assert len(made["train"]) > 2000
    for a, b in itertools.combinations(SIDES, 2):
        words = [{word for name in made[side] for word in name.split()} for side in (a, b)]
        assert not words[0] & words[1]


def bare(text):
    """Without the places for entities, which are only names."""
    return re.sub(r"\{\w+\}", "*", text).strip().lower()


def test_phrasings_of_the_sides_are_disjoint():
    phrases = {"train": training_words(), **{side: wording.phrases() for side, wording in WORDINGS.items()}}
    assert len(phrases["train"]) > 800
    assert len(phrases["dev"]) >= 18
    assert len(phrases["dev2"]) >= 28
    assert len(phrases["test"]) >= 28
    for a, b in itertools.combinations(phrases, 2):
        assert not {bare(text) for text in phrases[a]} & {bare(text) for text in phrases[b] if len(text) > 12}
    # nor is a held-out sentence part of anything that training is composed of
    trained = " | ".join(map(bare, phrases["train"]))
    for side in WORDINGS:
        assert [text for text in map(bare, phrases[side]) if len(text) > 12 and text in trained] == []


@pytest.mark.parametrize("family", list(FORMS))
def test_training_draws_another_form_every_time_and_none_that_is_held_out(data, family):
    forms = drawn(data, family, 600)
    assert len(set(forms)) > (400 if family == "labels" else 560)
    held_out = {bare(text) for wording in WORDINGS.values() for text in wording.phrases() if len(text) > 12}
    assert not [text for text in held_out if any(text in bare(form) for form in forms)]


def test_a_training_question_never_begins_with_an_entity(data):
    """It would lose its leading space, and be other tokens than in the text."""
    corpus = read_corpus(data, "train")
    draw = Draw("asks", corpus, wording_train.TrainWording(), len)
    for _ in range(400):
        wording = draw.wording
        asks = [
            wording.needle(draw).ask,
            wording.passkey(draw).ask,
            wording.path(draw).ask,
            wording.variables(draw).ask,
        ]
        assert not any(text.startswith("{") for text in asks)
        for text in (wording.multi_query(draw).item, wording.path(draw).item, wording.variables(draw).hop):
            assert all(text[found.start() - 1] in " " for found in re.finditer(r"\{[kvab]\}", text)), text


def test_a_book_that_is_not_named_is_for_training():
    assert book_side("somebody_something") == "train"
    for side, names in BOOKS.items():
        assert {book_side(name) for name in names} == {side}


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
