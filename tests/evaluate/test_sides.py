"""Nothing that evaluation uses was trained on: books, words, towns, phrasings."""

import hashlib
import itertools
import random
import re
import string

import pytest

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.tasks import phrases_train, places, read_corpus, records_train, wording_train
from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.registry import WORDINGS, find_task
from kvfoot.evaluate.tasks.split import BOOKS, DEV_SIDES, SIDES, book_side, seed_name, word_side
from kvfoot.evaluate.tasks.texts import read_texts


def training_words():
    """Everything that training phrasings are composed of."""
    found = set()
    for module in (phrases_train, records_train, wording_train):
        for name, value in vars(module).items():
            lists = value.values() if isinstance(value, dict) else [value] if isinstance(value, tuple) else []
            for entry in itertools.chain(*lists) if name.isupper() else ():
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
    assert [len(corpus.books) for corpus in corpora] == [2, 1, 1, 1, 1]
    assert [len(corpus.vocabulary.towns) for corpus in corpora] == [0, 31, 30, 0, 0]
    for kind in (
        lambda corpus: set(corpus.books),
        lambda corpus: set(corpus.vocabulary.words),
        lambda corpus: set(corpus.vocabulary.towns),
    ):
        sets = [kind(corpus) for corpus in corpora]
        assert len(set().union(*sets)) == sum(map(len, sets))
    assert len({name for names in BOOKS.values() for name in names}) == 20


def test_words_are_split_28_to_three_times_19_to_16():
    rng = random.Random(1)
    words = {"".join(rng.choices("abcdefgh", k=8)) for _ in range(4000)}
    shares = {side: sum(word_side(word) == side for word in words) / len(words) for side in SIDES}
    assert abs(shares["train"] - 72 / 256) < 0.03
    assert all(abs(shares[side] - 48 / 256) < 0.03 for side in DEV_SIDES)
    assert abs(shares["test"] - 40 / 256) < 0.03


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


def spelled(grammar):
    """Every word that a grammar can make."""
    ends = [a + b for a in ("", *grammar.tails) for b in grammar.tails]
    return {*grammar.before, *(head + end for head in grammar.heads for end in ends)}


def test_grammars_of_held_out_towns_have_no_word_in_common():
    assert set(places.HELD_OUT) == set(SIDES[1:])
    words = {side: spelled(grammar) for side, grammar in places.HELD_OUT.items()}
    for a, b in itertools.combinations(words, 2):
        assert not words[a] & words[b]
    # nor has training: neither its grammar nor, as it asks this pattern, its syllables of no language
    assert all(places._HELD_OUT.fullmatch(word) for found in words.values() for word in found)


def test_towns_of_the_test_side_begin_with_every_letter():
    rng = random.Random(3)
    made = {places.made_up(rng, "test") for _ in range(2000)}
    assert {name.split()[-1][0] for name in made} == set(string.ascii_uppercase)
    assert all(re.fullmatch(r"[A-Z][a-z]+( [A-Z][a-z]+)?", name) for name in made)
    assert 0.1 < sum(" " in name for name in made) / len(made) < 0.2


def bare(text):
    """Without the places for entities, which are only names."""
    return re.sub(r"\{\w+\}", "*", text).strip().lower()


def test_phrasings_of_the_sides_are_disjoint():
    phrases = {"train": training_words(), **{side: wording.phrases() for side, wording in WORDINGS.items()}}
    assert len(phrases["train"]) > 800
    assert len(phrases["dev"]) >= 18
    assert len(phrases["dev2"]) >= 28
    assert len(phrases["dev3"]) >= 28
    assert len(phrases["test"]) >= 70
    for a, b in itertools.combinations(phrases, 2):
        assert not {bare(text) for text in phrases[a]} & {bare(text) for text in phrases[b] if len(text) > 12}
    # nor is a held-out sentence part of anything that training is composed of
    trained = " | ".join(map(bare, phrases["train"]))
    for side in WORDINGS:
        assert [text for text in map(bare, phrases[side]) if len(text) > 12 and text in trained] == []


def runs(text, count):
    """Every run of `count` words of a phrase; an entity is one word."""
    words = re.findall(r"[a-z*']+", bare(text))
    return {" ".join(words[at : at + count]) for at in range(len(words) - count + 1)}


def test_the_test_side_shares_no_six_words_in_a_row_with_any_other_side(data):
    others = {side: wording.phrases() for side, wording in WORDINGS.items() if side != "test"}
    others["train"] = {*training_words(), *(form for family in FORMS for form in drawn(data, family, 300))}
    mine = {text: runs(text, 6) for text in WORDINGS["test"].phrases()}
    assert sum(map(len, mine.values())) > 400
    for phrases in others.values():
        theirs = set().union(*(runs(text, 6) for text in phrases))
        assert {text: found & theirs for text, found in mine.items() if found & theirs} == {}


@pytest.mark.parametrize("family", list(FORMS))
def test_training_draws_another_form_every_time_and_none_that_is_held_out(data, family):
    forms = drawn(data, family, 600)
    assert len(set(forms)) > (400 if family == "labels" else 560)
    held_out = {bare(text) for wording in WORDINGS.values() for text in wording.phrases() if len(text) > 12}
    assert not [text for text in held_out if any(text in bare(form) for form in forms)]


@pytest.mark.parametrize("side", SIDES[1:])
def test_every_phrasing_of_a_side_names_its_entities(side):
    wording = WORDINGS[side]
    for lookup in (*wording.needles, *wording.multi_values, *wording.multi_queries):
        assert re.findall(r"\{(\w)\}", lookup.ask) == ["k"]
        assert sorted(re.findall(r"\{(\w)\}", lookup.item)) == ["k", "v"]
    assert all("{v}" in lookup.item and "{" not in lookup.ask for lookup in wording.passkeys)
    assert all('"{k}"' in lookup.ask and "{" not in lookup.item for lookup in wording.jsons)
    for listing in wording.chains:
        assert sorted(re.findall(r"\{(\w)\}", listing.ask)) == ["e", "n", "s"]
        assert "{" not in listing.head + listing.line
    for lookup in wording.paths:
        assert set(re.findall(r"\{(\w)\}", lookup.item)) == {"a", "b", "m"}
        assert {"a", "b"} <= set(re.findall(r"\{(\w)\}", lookup.ask))
    for base, hop, ask in wording.assignments:
        assert [sorted(set(re.findall(r"\{(\w)\}", text))) for text in (base, hop, ask)] == [
            ["a", "v"],
            ["a", "b"],
            ["v"],
        ]
    assert all("{w}" in text for text in wording.label_lines)
    assert all(row[1].count("{c}") == 1 for row in wording.rows)
    assert all(text.count("{c}") == 1 for text in wording.tables)


def test_an_entity_of_the_test_side_stands_after_a_space_wherever_it_stands():
    """Else it would be other tokens in the question than in the text. Cells are an exception: they follow a mark."""
    wording = WORDINGS["test"]
    lookups = (*wording.needles, *wording.passkeys, *wording.multi_values, *wording.multi_queries, *wording.paths)
    texts = [text for form in (*lookups, *wording.assignments) for text in form]
    texts += [text.replace('"', "") for form in (*wording.jsons, *wording.chains) for text in form]
    for text in (*texts, *wording.tables):
        assert all(text[found.start() - 1 : found.start()] == " " for found in re.finditer(r"\{\w\}", text)), text
    assert all(listing.line.endswith(" ") for listing in wording.chains)
    assert not [row for row in wording.rows if row[1][-1].isalnum() or row[1][-1] == " "]


def test_the_third_dev_side_draws_what_it_drew_as_the_test_side(data):
    """The digest is of the side's samples when it was called `test`: the second release was published on them."""
    assert [seed_name(side) for side in SIDES] == ["train", "dev", "dev2", "test", "test3"]
    corpus = read_corpus(data, "dev3")
    found = hashlib.sha256()
    for name in ("passkey", "keys16", "multivalue", "variables", "chain", "path", "table"):
        sample = find_task(name).sample(corpus, lambda texts: sum(map(len, texts)) // 4, 4096, 1)
        found.update(repr((sample.pieces, sample.turns)).encode())
    assert found.hexdigest()[:16] == "18f86ec8d8ba7f10"


def test_running_text_for_any_model_leaves_the_books_of_the_test_side_closed(data):
    names = {name.removesuffix(".txt.gz") for name in read_texts(data, "perplexity").names}
    assert {book_side(name) for name in names} == set(DEV_SIDES)


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
