"""LongProc on a small folder of its own schema: loading, references that score 1, and its rules by hand."""

import itertools
import json
import shutil
import tarfile

import pytest
from longprocdata import PROMPTS, ROWS, TRIP

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.longproc import NAMES, longproc_task

WORDS = lambda texts: sum(len(text.split()) for text in texts)  # noqa: E731


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("longproc")
    for family, rows in ROWS.items():
        (place / "data" / family).mkdir(parents=True)
        (place / "data" / family / "prompts.yaml").write_text(f"USER_PROMPT: |-\n  {PROMPTS[family]}\n")
        level = "all" if family == "travel_planning" else "0.5k"
        (place / "data" / family / f"{family}_{level}.json").write_text(json.dumps(rows))
    (place / "data" / "html_to_tsv" / "webpage").mkdir()
    (place / "data" / "html_to_tsv" / "webpage" / "W1.html").write_text("<p>{Tom}</p>")
    (place / "data" / "travel_planning" / "travel_planning_icl_examples.json").write_text(json.dumps([TRIP]))
    return place


FIRST = ["countdown_0.5k", "html_to_tsv_0.5k", "path_traversal_0.5k", "tom_tracking_0.5k", "travel_planning_2k"]


@pytest.mark.parametrize("name", FIRST)
def test_a_reference_scores_one_and_nonsense_nothing(name, folder):
    task = longproc_task(name, folder)
    example = task.sample(0, 4000, 1, WORDS)
    assert task.category == "long output"
    assert task.metric == ("row F1" if name.startswith("html") else "accuracy")
    assert example.score(example.answers[0]) == 1
    assert example.score("Well, I would say so.") == 0
    assert WORDS([example.document]) + example.room <= 4000
    assert example.room > WORDS(example.answers)


def test_a_page_comes_as_it_is(folder):
    assert "<p>{Tom}</p> cats" in longproc_task("html_to_tsv_0.5k", folder).sample(0, 4000, 1, WORDS).document


def test_the_packed_folder_is_the_same(folder, tmp_path):
    with tarfile.open(tmp_path / "core.tar.gz", "w:gz") as tar:
        tar.add(folder / "data", "data")
    for name in FIRST:
        one, two = (longproc_task(name, place).sample(0, 4000, 1, WORDS) for place in (folder, tmp_path))
        assert (one.document, one.answers, one.room) == (two.document, two.answers, two.room)


def test_a_length_chooses_the_problems_that_fit(folder):
    task = longproc_task("countdown_0.5k", folder)
    both = [task.sample(i, 20_000, 1, WORDS) for i in range(2)]
    assert sorted(e.figures["problem"] for e in both) == [0, 1]
    sizes = sorted(WORDS([e.document]) + e.room for e in both)
    assert sizes[0] < sizes[1]
    assert WORDS([(short := task.sample(0, sizes[0] + 4, 1, WORDS)).document]) + short.room == sizes[0]
    with pytest.raises(UsageError, match=rf"has 1 problems within {sizes[0] + 4} tokens"):
        task.sample(1, sizes[0] + 4, 1, WORDS)


def test_missing_data_says_where_to_get_it(folder, tmp_path):
    for place, what in (
        (None, "needs LongProc's data"),
        (tmp_path / "no", "no such folder"),
        (tmp_path, "prompts.yaml"),
    ):
        with pytest.raises(UsageError, match=what) as error:
            longproc_task("countdown_2k", place).sample(0, 4000, 1, WORDS)
        assert "clone https://github.com/princeton-pli/LongProc" in str(error.value)
    with pytest.raises(UsageError, match=r"has no LongProc file countdown/countdown_2k\.json"):
        longproc_task("countdown_2k", folder).sample(0, 4000, 1, WORDS)
    with pytest.raises(UsageError, match="did you mean countdown_8k or countdown_2k"):
        longproc_task("countdown_3k")
    with pytest.raises(UsageError, match="html_to_tsv_2k has no score 'partial'"):
        longproc_task("html_to_tsv_2k:partial")
    assert longproc_task("tom_tracking_2k:partial").metric == "partial accuracy"
    assert len(NAMES) == 16


def test_pseudocode_is_run(folder):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    example = longproc_task("pseudo_to_code_0.5k", folder).sample(0, 4000, 1, WORDS)
    try:
        assert example.score(example.answers[0]) == 1
    except UsageError as error:
        pytest.skip(str(error))
    assert example.score(example.answers[0].replace("a + 1", "a + 2")) == 0
    assert example.score(example.answers[0].replace("```", "")) == 0


def test_names_are_of_levels_that_exist():
    families = {name.rsplit("_", 1)[0] for name in NAMES}
    assert len(families) == 6
    assert all(a != b for a, b in itertools.pairwise(sorted(NAMES)))
