"""LongProc's rules, against values worked out by hand."""

import pytest
from longprocdata import ROWS, TOM, TRIP

from kvfoot.evaluate.longproc import beliefs, countdown, html, pseudocode, route, travel


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
