"""LongProc on a small folder of its own schema: loading, references that score 1, and its rules by hand."""

import itertools
import json
import shutil
import tarfile

import pytest

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.longproc import NAMES, beliefs, countdown, html, longproc_task, pseudocode, route, travel

WORDS = lambda texts: sum(len(text.split()) for text in texts)  # noqa: E731
TRIP = {
    "ground_truth_cities": "Dublin**Manchester**Split",
    "ground_truth_durations": "5**3**7",
    "num_cities": 3,
    "total_days": 13,
    "constraints": [
        {"type": "duration", "city": "Manchester", "num_days": 3},
        {"type": "fixed", "city": "Manchester", "start_day": 5, "end_day": 7},
        {"type": "duration", "city": "Split", "num_days": 7},
        {"type": "duration", "city": "Dublin", "num_days": 5},
    ],
    "connected_cities": [["Dublin", "Split"], ["Manchester", "Split"], ["Dublin", "Manchester"]],
    "disambig_question_text": "You plan to visit 3 European cities for 13 days in total.",
    "estimated_output_tokens": 900,
}
TOM = (
    "Ann's belief on the cup:\n- Step 0: (initial state) {Ann location: hall; cup location: hall's box; Ann sees cup: "
    "True; Ann's belief on cup: hall's box}\n- Step 1: (Ann location changed; cup location unchanged) {Ann location: "
    "attic; cup location: hall's box; Ann sees cup: False; Ann's belief on cup: hall's box}\n"
    "Final Answer: the hall's box"
)
CODE = ["int main() {", "    int a;", "    cin >> a;", "    cout << a + 1 << endl;", "}"]
ROWS = {
    "countdown": [{"nums": [21, 16, 17, 26], "target": 46}, {"nums": [9, 16, 6, 18], "target": 12}],
    "html_to_tsv": [
        {
            "task_id": "W1", "html_path": "webpage/W1.html", "task_topic": "cats",
            "task_description": "(1) Name; (2) Age",
            "gt": "name\tage\nThe Tom\t3\nKit\t1", "tsv_header": "name\tage", "filtering_instruction": "",
        }
    ],
    "path_traversal": [
        {
            "context_nl": "A is a lively city.", "question_repr": ["A", "C"],
            "answer_nl": "From A, take a bus to B.\nFrom B, take a train to C.",
        }
    ],
    "pseudo_to_code": [
        {"problem_id": "1A", "pseudocode_lines": ["main"], "code_lines": CODE,
         "testcases": [[["4"], ["5"]], [["9"], ["10"]]]}
    ],
    "tom_tracking": [{"story_components": "", "story": "Step 0: ...", "question": "Where?", "solution": TOM}],
    "travel_planning": [TRIP],
}  # fmt: skip
PROMPTS = {
    "countdown": "{demonstration}\nNumbers: {nums}\nTarget: {target}",
    "html_to_tsv": "{html_str} {task_topic} {task_description}{filtering_instruction} {tsv_header} {{Your TSV output}}",
    "path_traversal": "{city_context} from {src_city} to {dst_city}",
    "pseudo_to_code": "{pseudocode}",
    "tom_tracking": "{story} {question}",
    "travel_planning": "{demonstration} {problem}",
}


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


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("```tsv\nname\tage\nTom\t3\nKit\t1\n```", 1),
        ("```tsv\nname\tage\nkit\t1\ntom\t3\n```", 1),  # any order
        ("```tsv\nother\theads\nTom\t3\nKit\t1\n```", 1),  # the heading's words do not count
        ("```tsv\nname\tage\nThe T.o.m\t3\nKi t\t1\n```", 1),  # case, points, articles and spaces
        ("name\tage\nTom\t3\nKit\t1", 1),  # no fence
        ("Here: ```tsv\nname\tage\nTom\t3\nKit\t1", 1),  # never closed
        ("```tsv\nname\tage\nTom\t3\n```", 2 / 3),
        (
            "```tsv\nname\tage\nTom\t3\nTom\t3\nTom\t4\n```",
            2 * (2 / 3) * 0.5 / (2 / 3 + 0.5),
        ),  # a row again counts again
        ("```tsv\nname\tage\nTom\t3\nKit\t1\nThat is all.\n```", 1),  # an ending remark is dropped
        ("```tsv\nname\tage\nThat is all.\nTom\t3\nKit\t1\n```", 0.8),  # elsewhere it is a wrong row
        ("```tsv\nTom\t3\nKit\t1\n```", 2 / 3),  # without a heading the first row is taken for it
        ("```tsv\nname\tage\tsex\nTom\t3\tm\n```", 0),
        ("```tsv\nname\tage\n```", 0),
        ("", 0),
    ],
)
def test_row_f1_by_hand(answer, wanted):
    assert html.row_f1(answer, ROWS["html_to_tsv"][0]["gt"]) == pytest.approx(wanted)


REFERENCE = "From A, take a bus to B.\nFrom B, take a train to C.\nFrom C, take a bus to D."


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (f"<Route>\n{REFERENCE}\n</Route>", (1, 1)),
        (f"Sure.\n<Route>{REFERENCE}</Route> Done.", (1, 1)),
        (REFERENCE, (0, 0)),  # not marked
        (f"<Route>\n{REFERENCE}", (0, 0)),
        ("<Route>\nFrom A, take a bus to B.\n</Route>", (0, 1 / 3)),
        ("<Route>\nFrom A, take a bus to B.\nFrom B, take a bus to C.\nFrom C, take a bus to D.\n</Route>", (0, 1 / 3)),
        ("<Route>\nfrom A, take a bus to B.\n</Route>", (0, 0)),  # case counts
        (f"<Route>\n{REFERENCE}\nFrom D, take a bus to E.\n</Route>", (0, 1)),  # right, and then too long
        ("<Route></Route>", (0, 0)),
    ],
)
def test_routes_by_hand(answer, wanted):
    assert route.grade(answer, REFERENCE) == pytest.approx(wanted)


FIRST_STEP, SECOND_STEP = TOM.split("\n")[1:3]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (TOM, (1, 1)),
        (f"{FIRST_STEP}\n{SECOND_STEP}", (1, 1)),  # the final answer is not looked at
        (TOM.upper().replace("- STEP", "- Step"), (1, 1)),
        (TOM.replace("Ann's belief", "Ann believes"), (0, 0)),  # "anns" is not "ann"
        (TOM.replace("hall's box; Ann sees", "the hall's box, Ann sees"), (1, 1)),
        (FIRST_STEP, (0, 0.5)),
        (f"- Step 0: nothing\n{TOM}", (1, 1)),  # only the last trace is read
        (f"{FIRST_STEP}\n{SECOND_STEP.replace('False', 'True')}", (0, 0.5)),
        (f"  {FIRST_STEP}\n{SECOND_STEP}", (1, 1)),
        (f"{TOM}\n- Step 2: (more)", (0, 1)),
        ("", (0, 0)),
    ],
)
def test_beliefs_by_hand(answer, wanted):
    assert beliefs.grade(answer, TOM) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["21 + 16 = 37", "37 - 17 = 20", "26 + 20 = 46"], True),
        (["21+16=37", "26-17=9", "37+9=46"], True),
        (["26 - 17 = 9", "21 + 16 = 37", "9 + 37 = 46"], True),
        (["21 + 16 = 37", "37 - 17 = 20", "26 + 20 = 47"], False),  # wrong sum
        (["21 + 16 = 37", "37 + 9 = 46", "46 / 1 = 46"], False),  # numbers that are not there
        (["21 + 16 = 37", "26 + 20 = 46"], False),
        (["21 + 26 = 47", "47 - 17 = 30", "30 + 16 = 46"], True),
        (["16 - 17 = -1", "21 + 26 = 47", "47 + -1 = 46"], False),  # results have to be positive
        (["21 + 21 = 42", "17 - 16 = 1", "42 + 1 = 43"], False),  # a number twice
        (["21 + 16 = 37", "so 37 - 17 = 20", "26 + 20 = 46"], False),
        (["0 / 0 = 0", "1 + 1 = 2", "2 + 0 = 2"], False),
    ],
)
def test_countdown_solutions_by_hand(lines, wanted):
    assert countdown.solves("\n".join(lines), [21, 16, 17, 26], 46) is wanted


def test_countdown_grades_the_search_where_the_solution_fails():
    reference = countdown.solve([21, 16, 17, 26], 46)
    grade = lambda text: countdown.grade(text, [21, 16, 17, 26], 46, reference)  # noqa: E731
    lines = reference.split("\n")
    assert lines[1] == (
        "Initial number set: [21, 16, 17, 26], target: 46. Options for choosing two numbers: "
        "[(21, 16), (21, 17), (21, 26), (16, 17), (16, 26), (17, 26)]."
    )
    assert lines[8] == "     |- Try 54 * 26 = 1404. Evaluate 1404 != 46, drop this branch."
    assert lines[9] == "     |- Try 54 / 26 = 2.1. 2.1 is a decimal, drop this branch."
    search = lines[1 : lines.index("")]
    assert len(search) == 11
    assert grade(reference) == (1, 1)
    assert grade("<Solution>\n21+16=37\n26-17=9\n37+9=46\n</Solution>") == (1, 1)  # another way, no search
    assert grade("\n".join(lines[: 1 + 4])) == pytest.approx((0, 4 / 11))
    wrong = [*lines[:6], lines[6].replace("= 80. Evaluate 80", "= 81. Evaluate 81"), *lines[7:10]]
    assert grade("\n".join(wrong)) == pytest.approx((0, 9 / 11))  # a wrong sum with the right action passes
    assert grade("\n".join([*lines[:6], lines[6].replace(", drop this branch", ""), *lines[7:10]]))[1] == 5 / 11
    assert grade("\n".join(lines[1:6])) == (0, 0)  # untitled
    with pytest.raises(ValueError, match="do not reach"):
        countdown.solve([1, 1, 1, 1], 1999)


def test_travel_reference_and_grades():
    reference = travel.solve(TRIP)
    grade = lambda text: travel.grade(text, "Dublin**Manchester**Split", "5**3**7", reference)  # noqa: E731
    assert "* City: Manchester, Duration: 3 days, Fixed Schedule: Day 5 - 7.\n* City: Split" in reference
    assert "  |- Current day: 5. Current plan: [Dublin].\n" in reference
    assert "\n |- Fail to arrange" not in reference
    plan = (
        "**Day 1-5:** Arriving in Dublin and visit Dublin for 5 days.\n**Day 5:** Fly from Dublin to Manchester.\n"
        "**Day 5-7:** Visit Manchester for 3 days.\n**Day 7:** Fly from Manchester to Split.\n"
        "**Day 7-13:** Visit Split for 7 days."
    )
    assert reference.endswith(f"Output the plan in the required format:\n<Plan>\n{plan}\n</Plan>")
    assert travel.stays(plan) == [("Dublin", 5), ("Manchester", 3), ("Split", 7)]
    assert grade(reference) == (1, 1)
    assert grade(f"<Plan>\n{plan}\n</Plan>") == (1, 1)
    assert grade(f"<Plan>\n{plan.replace('13', '12')}\n</Plan>")[0] == 0
    assert grade(plan) == (0, 0)
    assert grade(f"<Plan>\n{plan.replace('Fly', 'Drive')}\n</Plan>") == (1, 1)  # only day, from and to are read
    lines = [line for line in reference.split("\n") if line and not line.startswith("Output")]
    assert grade("\n".join(lines[:4])) == pytest.approx((0, 4 / len(lines)))
    assert grade("\n".join(["Hm.", *lines[:4]])) == pytest.approx((0, 4 / len(lines)))  # what is before it, is not read
    assert grade("") == (0, 0)
    stop = f"European cities for 13 days\n{plan}\n**Day 13:** Fly from Split to Rome."
    assert travel.stays(stop)[-1] == ("Split", 7)
    assert travel.stays("nothing") == []


def test_a_search_that_has_to_go_back():
    row = TRIP | {"constraints": [TRIP["constraints"][2], *TRIP["constraints"][:2], TRIP["constraints"][3]]}
    log = travel.solve(row)
    assert "Day 7 is later than (>) Day 5. This arrangement is incompatible. Drop this branch." in log
    row = TRIP | {"connected_cities": [["Manchester", "Split"]]}
    with pytest.raises(ValueError, match="has no plan"):
        travel.solve(row)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("```cpp\nx\n```", "\nx\n"),
        ("```c++\nx\n```", "\nx\n"),
        ("text ```cpp\nx``` more", "\nx"),
        ("```cpp\nx\n```\nand\n```cpp\ny\n```", "\nx\n```\nand\n```cpp\ny\n"),  # to the last fence
        ("```\nx\n```", None),
        ("x", None),
        ("```cpp\nx", None),
        ("```cpp```", ""),
    ],
)
def test_the_program_in_an_answer(answer, wanted):
    assert pseudocode.program(answer) == wanted


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
