"""travel_planning: arrange cities over days under fixed dates and one-way flights, searching in writing."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvfoot.evaluate.longproc.source import Item, Source, tagged, until_first_error

LEVELS = ("2k", "8k")
RANGES = {"2k": (0, 2048), "8k": (4096, 8192)}
"""Estimated output tokens of a level, half open; problems in between belong to none."""
START = "the starting point"
LAST_LINE = "Output the plan in the required format:"
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Stay:
    city: str
    days: int
    first: int

    @property
    def last(self) -> int:
        return self.first + self.days - 1


@dataclass
class Search:
    """Depth first over the open cities in their order; `log` is the text of it."""

    cities: int
    open: list[tuple[str, int]]
    fixed: list[Stay]
    flights: frozenset[tuple[str, str]]
    log: list[str] = field(default_factory=list)

    def run(self, day: int, plan: list[Stay]) -> list[Stay] | None:
        """The first complete plan that goes on from `plan` on `day`."""
        depth = 2 * len(plan)
        self._say(depth, f"Current day: {day}. Current plan: {_names([stay.city for stay in plan])}.")
        if len(plan) == self.cities:
            self._say(depth, f"All {self.cities} cities are arranged. Complete plan is found!")
            return plan
        self._say(depth, f"Check whether the city with an arrival day of Day {day} - is fixed.")
        fixed = next((stay for stay in self.fixed if stay.first == day), None)
        if fixed is not None:
            self._say(depth, f"Yes. The city with an arrival day of Day {day} - is fixed: {fixed.city}.")
            choices = [fixed]
        else:
            taken = {stay.city for stay in plan}
            choices = [Stay(city, days, day) for city, days in self.open if city not in taken]
            names = _names([stay.city for stay in choices])
            self._say(
                depth,
                f"No. Consider possible options from cities needing arrangement: {names} and explore these options in "
                "order.",
            )
        before = plan[-1].city if plan else START
        after = next((stay for stay in self.fixed if stay.first > day), None)
        for choice in choices:
            if self._possible(depth + 1, choice, before, after):
                found = self.run(choice.last, [*plan, choice])
                if found is not None:
                    return found
        self._say(depth + 1, f"Fail to arrange any option on day {day} in the current arrangement. Drop this branch.")
        return None

    def _possible(self, depth: int, choice: Stay, before: str, after: Stay | None) -> bool:
        day, city = choice.first, choice.city
        self._say(
            depth,
            f"Try arranging to visit {city} from Day {day}. Duration: {choice.days} days. Schedule: Day {day} - "
            f"{choice.last}.",
        )
        self._say(depth, f"Check for direct flight from {before} to {city}.")
        if before != START and (before, city) not in self.flights:
            self._say(depth, "No. Drop this branch.")
            return False
        self._say(depth, "Yes.")
        question = f"Check whether this arrangement is compatible with the next fixed schedule after Day {day}: "
        if after is None:
            self._say(depth, question + "None.")
            self._say(depth, "No following fixed schedules. This arrangement is compatible.")
        else:
            self._say(depth, f"{question}{after.city} (Day {after.first} - {after.last}).")
            late = choice.last > after.first
            ends = "incompatible. Drop this branch." if late else "compatible."
            self._say(
                depth,
                f"The departure day of {city} is Day {choice.last}. The arrival day of {after.city} is Day "
                f"{after.first}. Day {choice.last} is {'' if late else 'not '}later than ({'>' if late else '<='}) Day "
                f"{after.first}. This arrangement is {ends}",
            )
            if late:
                return False
        self._say(depth, "This arrangement is feasible for now. Continue to arrange the rest of the plan.")
        return True

    def _say(self, depth: int, line: str) -> None:
        self.log.append((" " * depth + "|- " if depth else "") + line)


def _names(cities: list[str]) -> str:
    return f"[{', '.join(cities)}]"


def write_plan(stays: list[Stay]) -> str:
    lines = []
    for i, stay in enumerate(stays):
        arriving = f"Arriving in {stay.city} and visit" if i == 0 else "Visit"
        lines.append(f"**Day {stay.first}-{stay.last}:** {arriving} {stay.city} for {stay.days} days.")
        if i + 1 < len(stays):
            lines.append(f"**Day {stay.last}:** Fly from {stay.city} to {stays[i + 1].city}.")
    return "\n".join(lines)


def solve(row: Mapping[str, Any]) -> str:
    """The whole answer that LongProc takes for the reference: requirements, search, plan."""
    days = {c["city"]: c["num_days"] for c in row["constraints"] if c["type"] == "duration"}
    dated = {
        c["city"]: Stay(c["city"], c["end_day"] - c["start_day"] + 1, c["start_day"])
        for c in row["constraints"]
        if c["type"] == "fixed"
    }
    lines = [
        "Read the requirements and identify the cities that have fixed schedules and the cities that need to be "
        "arranged."
    ]
    for city, length in days.items():
        when = f", Fixed Schedule: Day {dated[city].first} - {dated[city].last}" if city in dated else ""
        lines.append(f"* City: {city}, Duration: {length} days{when}.")
    fixed = sorted(dated.values(), key=lambda stay: stay.first)
    if fixed:
        lines += ["", "Cities that have fixed schedules (sorted by their arrival days):"]
        lines += [f"* City: {stay.city}, Fixed Schedule: Day {stay.first} - {stay.last}." for stay in fixed]
    else:
        lines += ["", "Cities that have fixed schedules: None."]
    free = [(city, length) for city, length in days.items() if city not in dated]
    if free:
        lines += ["", "Cities needing arrangement:"]
        lines += [f"* City: {city}, Duration: {length} days." for city, length in free]
    else:
        lines += ["", "Cities needing arrangement: None."]
    flights = frozenset((a, b) for a, b in row["connected_cities"])
    search = Search(row["num_cities"], free, fixed, flights)
    plan = search.run(1, [])
    if plan is None:
        raise ValueError(f"the trip of {row['num_cities']} cities has no plan")
    log = "\n".join([*lines, "", *search.log])
    return f"<Solving Procedure>\n{log}\n</Solving Procedure>\n\n{LAST_LINE}\n<Plan>\n{write_plan(plan)}\n</Plan>"


def stays(text: str) -> list[tuple[str, int]]:
    """(city, days) of a written plan: cities by its flights, days by theirs, as Natural Plan reads them.

    City names of one word only; the last day is that of the last "N-M"; where the text names the trip's length, what
    follows the day that reaches it is not read.
    """
    total, spans, flights = None, [], []
    for line in text.split("\n"):
        named = re.findall(r"European cities for (\d+) days", line)
        total = int(named[0]) if named else total
        span = re.findall(r"\d+-\d+", line)
        if span:
            spans.append(int(span[0].split("-")[1]))
            if spans[-1] == total:
                break
        flight = re.findall(r".*Day (\d+).*from (\w+) to (\w+)", line)
        if flight:
            flights.append(flight[0])
    if not spans or not flights:
        return []
    cities = [flights[0][1], *(to for _, _, to in flights)]
    days = [1, *(int(day) for day, _, _ in flights), spans[-1]]
    return [(city, days[i + 1] - days[i] + 1) for i, city in enumerate(cities)]


def _bare(line: str) -> str:
    text = "".join(c for c in line.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def grade(answer: str, cities: str, durations: str, reference: str) -> tuple[float, float]:
    """Accuracy: <Plan> has the cities and days of "A**B", "5**3", in order; more after them is not held against it.

    Partial: lines of the search before the first that does not hold the reference's.
    """
    plan = tagged(answer, "Plan")
    wanted = list(zip(cities.split("**"), map(int, durations.split("**")), strict=True))
    if plan is not None and stays(plan)[: len(wanted)] == wanted:
        return 1.0, 1.0
    mark = "<Solving Procedure>"
    said, right = (text.replace(LAST_LINE, "") for text in (answer, reference))
    said = mark + said.split(mark)[1] if mark in said else said
    said_lines, right_lines = ([line for line in text.split("\n") if line.strip()] for text in (said, right))
    held = [_bare(b) in _bare(a) for a, b in zip(said_lines, right_lines, strict=False)]
    return 0.0, until_first_error(held, len(right_lines))


def items(source: Source, level: str) -> list[Item]:
    shown = source.rows("travel_planning/travel_planning_icl_examples.json")
    examples = "\n\n".join(f"# Example\n{row['disambig_question_text']}\n\n{solve(row)}" for row in shown)
    template = source.template("travel_planning")
    low, high = RANGES[level]
    found = []
    for row in source.rows("travel_planning/travel_planning_all.json"):
        if low <= row["estimated_output_tokens"] < high:
            reference = solve(row)
            grader = functools.partial(
                grade,
                cities=row["ground_truth_cities"],
                durations=row["ground_truth_durations"],
                reference=reference,
            )
            found.append(
                Item(template.format(demonstration=examples, problem=row["disambig_question_text"]), reference, grader)
            )
    return found
