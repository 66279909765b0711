"""HELMET and LongBench from small local files of their schemas."""

import json

import pytest

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.benchmarks import rows
from kvfoot.evaluate.benchmarks.helmet_forms import FORMS, helmet_task
from kvfoot.evaluate.benchmarks.longbench import NAMES, longbench_task
from kvfoot.evaluate.tasks.published import published_task

pytest.importorskip("datasets")
WORDS = lambda texts: sum(len(text.split()) for text in texts)  # noqa: E731


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import datasets

    place = tmp_path_factory.mktemp("benchmarks")
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    bench = {"length": 5, "language": "en", "_id": "1", "all_classes": None}
    long = " ".join(f"w{i}" for i in range(3000))
    write(place / "longbench" / "hotpotqa.jsonl", [bench | {"input": "Who?", "context": long, "answers": ["The Tom"]}])
    write(
        place / "longbench" / "trec.jsonl",
        [bench | {"input": "Question: When?", "context": "c", "answers": ["Date"], "all_classes": ["Date", "Place"]}],
    )
    write(place / "longbench" / "lcc.jsonl", [bench | {"input": "", "context": "x = 1\n", "answers": ["y = 2"]}])
    document = {"title": "Tom", "text": "Tom is a cat."}
    qa = [
        {"question": f"Who is {i}?", "answers": [f"Tom {i}"], "ctxs": [document], "s_pop": 10.0 ** (i + 1)}
        for i in range(4)
    ]
    helmet = place / "helmet"
    write(helmet / "kilt" / "nq-dev-multikilt_1000_k20_dep6.jsonl", qa)
    write(helmet / "kilt" / "nq-dev-multikilt_1000_k50_dep6.jsonl", [row | {"ctxs": [document] * 50} for row in qa])
    write(helmet / "kilt" / "nq-train-multikilt_1000_k3_dep6.jsonl", qa)
    write(helmet / "kilt" / "popqa_test_1000_k20_dep6.jsonl", qa)
    write(helmet / "kilt" / "popqa_test_1000_k3_dep6.jsonl", qa)
    pairs = {"context": 'JSON data:\n{"a": "1", "b": "2", "c": "3"}', "num_kvs": 3}
    write(
        helmet / "json_kv" / "test_k50_dep6.jsonl",
        [pairs | {"question": "a", "answer": "1", "demos": [["b", "2"], ["c", "3"], ["a", "1"]]}],
    )
    ranked = [{"id": str(i), "label": i % 3, "title": "T", "text": f"text {i}"} for i in range(4)]
    write(helmet / "msmarco" / "test_reranking_data_k14_dep3.jsonl", [{"qid": "q", "query": "which?", "ctxs": ranked}])
    write(
        helmet / "msmarco" / "test_reranking_data_k10_dep3.jsonl",
        [{"qid": f"d{i}", "query": "what?", "ctxs": ranked} for i in range(3)],
    )
    labelled = [{"text": f"sentence {i}", "coarse_label": i % 3} for i in range(30)]
    write(helmet / "trec_coarse.jsonl", labelled[:6])
    write(helmet / "trec_coarse_train.jsonl", labelled)
    story = {"context": long, "input": "Who?", "answer": ["Tom"], "options": ["Kit", "Tom", "Ann", "Bob"]}
    write(helmet / "infbench_choice.jsonl", [story | {"id": i} for i in range(4)])
    write(helmet / "infbench_qa.jsonl", [story | {"id": i} for i in range(4)])
    write(helmet / "infbench_sum.jsonl", [story | {"id": i} for i in range(4)])
    write(
        helmet / "narrativeqa.jsonl",
        [{"document": {"text": long}, "question": {"text": "Who?"}, "answers": [{"text": "Tom"}, {"text": "Tom Cat"}]}],
    )
    write(helmet / "multi_lexsum.jsonl", [{"sources": ["one", "two"], "summary/short": "A case."}])
    yield place
    patch.undo()
    rows.load.cache_clear()


LOCAL = [
    "helmet_infbench_choice", "helmet_infbench_qa", "helmet_infbench_sum", "helmet_json_kv", "helmet_msmarco",
    "helmet_multi_lexsum", "helmet_narrativeqa", "helmet_nq", "helmet_popqa", "helmet_trec_coarse",
    "longbench_hotpotqa", "longbench_lcc", "longbench_trec",
]  # fmt: skip


@pytest.mark.parametrize("name", LOCAL)
def test_a_sample_fits_and_its_reference_scores_one(name, folder):
    task = published_task(name, folder)
    length = 3000 if name == "helmet_infbench_sum" else 1200
    e = task.sample(0, length, 1, WORDS)
    assert WORDS([e.document, e.question, e.prefix]) + e.room <= length
    assert e.score(e.answers[0]) == pytest.approx(1)
    assert e.score("") == 0
    again = published_task(name, folder).sample(0, length, 1, WORDS)
    assert (again.document, again.question, again.answers) == (e.document, e.question, e.answers)


def test_a_long_context_loses_its_middle_or_its_end(folder):
    bench = published_task("longbench_hotpotqa", folder)
    e = bench.sample(0, 1200, 1, WORDS)
    kept = e.document.split("given passages.\n")[1].split(" ")
    half = len(kept) // 2
    assert kept == [*(f"w{i}" for i in range(half)), *(f"w{i}" for i in range(3000 - len(kept) + half, 3000))]
    assert e.figures == {"whole": 0.0}
    assert bench.sample(0, 5000, 1, WORDS).figures == {"whole": 1.0}
    e = published_task("helmet_narrativeqa", folder).sample(0, 1200, 1, WORDS)
    assert e.document.endswith(" ... [the rest of the text is omitted]")
    assert " w0 w1 " in e.document.replace("\n", " ")
    assert e.score("Tom Cat") == 1


def test_the_largest_file_that_fits_is_taken(folder):
    task = published_task("helmet_nq", folder)
    small, large = (task.sample(0, length, 1, WORDS).document.count("Document (Title") for length in (150, 1200))
    assert (small, large) == (3, 52)
    with pytest.raises(UsageError, match="no sample 0 of at most 40 tokens"):
        task.sample(0, 40, 1, WORDS)


def test_popqa_asks_about_the_unpopular(folder):
    task = published_task("helmet_popqa", folder)
    found = {task.sample(i, 1200, 1, WORDS).question for i in range(2)}
    assert found == {"Question: Who is 0?", "Question: Who is 1?"}
    with pytest.raises(UsageError, match="has 2 samples"):
        task.sample(2, 1200, 1, WORDS)


def test_scores_follow_their_benchmark(folder):
    score = {name: published_task(name, folder).sample(0, 1200, 1, WORDS).score for name in LOCAL if "sum" not in name}
    asked = published_task("helmet_nq", folder).sample(0, 1200, 1, WORDS)
    right = asked.answers[0].strip()
    assert asked.score(f"It is {right}, I think") == 1
    assert asked.score(f"I do not know\n{right}") == 0  # only the first line
    assert score["helmet_json_kv"]("Corresponding value: 1") == 1
    assert score["helmet_msmarco"]("Ranking: ID2 > ID1 > ID0") == pytest.approx(1)
    assert 0 < score["helmet_msmarco"]("ID0 > ID1 > ID2") < 1
    assert score["helmet_infbench_choice"]("Answer: B") == 1
    assert score["helmet_infbench_choice"]("I say b. tom") == 1
    assert score["helmet_infbench_choice"]("B or C") == 0
    assert score["longbench_hotpotqa"]("tom") == 1
    assert score["longbench_trec"]("Date\nPlace") == 1
    assert score["longbench_trec"]("Date Place") == 0.5
    assert score["longbench_lcc"]("# two\ny = 2\nz") == 1
    icl = published_task("helmet_trec_coarse", folder).sample(0, 1200, 1, WORDS)
    assert icl.score(f"label:{icl.answers[0]}") == 1
    assert icl.score(f"{icl.answers[0]}1") == 0


def test_many_shot_labels_are_balanced_numbers(folder):
    e = published_task("helmet_trec_coarse", folder).sample(0, 1200, 1, WORDS)
    shots = [shot.rsplit("\nlabel: ", 1) for shot in e.document.split("nothing else. \n\n")[1].split("\n\n")]
    labels = [label for _, label in shots]
    assert len(shots) == e.figures["shots"] > 100
    assert max(labels.count(x) for x in "012") - min(labels.count(x) for x in "012") <= 1
    assert e.question not in dict(shots)  # although it is among the rows of the examples
    number = {int(text.split()[1]) % 3: label for text, label in shots}
    assert number[int(e.question.split()[1]) % 3] == e.answers[0].strip()


def test_bad_requests(folder, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="did you mean hotpotqa"):
        longbench_task("longbench_hotpot")
    with pytest.raises(UsageError, match="did you mean msmarco"):
        helmet_task("helmet_marco")
    with pytest.raises(UsageError, match=r"needs HELMET's data .* run its scripts/download_data\.sh"):
        published_task("helmet_nq", tmp_path).sample(0, 1000, 1, WORDS)
    with pytest.raises(UsageError, match="ask for fewer"):
        published_task("longbench_lcc", folder).sample(1, 1000, 1, WORDS)
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no route")))
    with pytest.raises(UsageError, match=r"zai-org/LongBench.* cannot be read \(no route\): connect to the network"):
        published_task("longbench_qasper", tmp_path).sample(0, 1000, 1, WORDS)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    rows.load.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'kvfoot\[datasets\]'"):
        published_task("longbench_qasper", tmp_path).sample(0, 1000, 1, WORDS)


def test_categories_and_metrics():
    assert len(NAMES) == 16
    assert len(FORMS) == 16
    assert {form.category for form in FORMS.values()} == {
        "recall", "rag", "rerank", "in-context learning", "question answering", "summary"
    }  # fmt: skip
