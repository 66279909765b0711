"""countdown: reach a target with four numbers, searching in writing; and that search, as LongProc words it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kvfoot.evaluate.longproc.source import Item, Source, tagged, until_first_error

LEVELS = ("0.5k", "2k", "8k")
SHOWN = (((40, 19, 23, 7), 29), ((9, 16, 6, 18), 12))
"""The problems of the prompt's two worked examples."""
LARGEST = 2000
TITLE = "# Search Procedure"
FOUND = "Now we have found the target"
_EQUATION = re.compile(r"(\d+)\s*([-+*/])\s*(\d+)\s*=\s*(\d+)")


def _pairs(numbers: Sequence[int]) -> Iterator[tuple[int, int, list[int]]]:
    for i, a in enumerate(numbers):
        for j in range(i + 1, len(numbers)):
            yield a, numbers[j], [x for k, x in enumerate(numbers) if k not in (i, j)]


def _indent(depth: int) -> str:
    return " " * depth + "|- " if depth else ""


@dataclass
class Search:
    """Depth first over pairs and the four operations; `log` is the text of it, `path` the equations to the target."""

    target: int
    log: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)

    def run(self, numbers: list[int]) -> bool:
        options = [(a, b) for a, b, _ in _pairs(numbers)]
        self.log.append(
            f"Initial number set: {numbers}, target: {self.target}. Options for choosing two numbers: {options}."
        )
        return self._choose(numbers, 1)

    def _choose(self, numbers: list[int], depth: int) -> bool:
        for a, b, left in _pairs(numbers):
            if len(numbers) > 2:
                self.log.append(
                    f"{_indent(depth)}Pick two numbers ({a}, {b}) (numbers left: {left}). Try possible operations."
                )
            big, small = max(a, b), min(a, b)
            for sign, value in (("+", big + small), ("-", big - small), ("*", big * small), ("/", None)):
                if self._try(big, sign, small, value, left, depth + 1):
                    return True
        return False

    def _try(self, a: int, sign: str, b: int, value: int | None, left: list[int], depth: int) -> bool:
        line = f"{_indent(depth)}Try {a} {sign} {b}"
        if value is None:
            if b == 0:
                self.log.append(f"{line} (invalid operation). drop this branch.")
                return False
            if a % b:
                self.log.append(f"{line} = {a / b:.1f}. {a / b:.1f} is a decimal, drop this branch.")
                return False
            value = a // b
        line = f"{line} = {value}. "
        if value >= LARGEST:
            self.log.append(f"{line}{value} exceeds the maximum intermediate result, drop this branch.")
            return False
        if not left:
            hit = value == self.target
            verdict = "== {}, target found!" if hit else "!= {}, drop this branch."
            self.log.append(f"{line}Evaluate {value} {verdict.format(self.target)}")
        else:
            numbers = [value, *left]
            state = f"{line}Add {value} to the number set. Current number set: {numbers}, target: {self.target}"
            deeper = depth
            if len(numbers) == 2:
                self.log.append(f"{state}, just two numbers left.")
            else:
                options = [(x, y) for x, y, _ in _pairs(numbers)]
                self.log.append(f"{state}. Options for choosing two numbers: {options}.")
                deeper += 1
            hit = self._choose(numbers, deeper)
        if hit:
            self.path.insert(0, f"{a} {sign} {b} = {value}")
        return hit


def solve(numbers: Sequence[int], target: int) -> str:
    """The whole answer that LongProc takes for the reference: search, summary, solution."""
    search = Search(target)
    if not search.run(list(numbers)):
        raise ValueError(f"{list(numbers)} do not reach {target}")
    first, second, third = search.path
    return (
        f"{TITLE}\n" + "\n".join(search.log) + f"\n\n{FOUND}, let's trace back the solution:\nFinal step: {third}\n"
        f"The step before: {second}\nThe first step: {first}\n\nOutput the solution in the required "
        f"format:\n<Solution>\n{first}\n{second}\n{third}\n</Solution>\n"
    )


def solves(text: str, numbers: Sequence[int], target: int) -> bool:
    """Three equations that use every number once and end with the target. No result may be negative."""
    lines, left = text.strip().split("\n"), list(numbers)
    if len(lines) != 3:
        return False
    for line in lines:
        match = _EQUATION.fullmatch(line.strip())
        if match is None:
            return False
        a, b, result = int(match[1]), int(match[3]), int(match[4])
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else -1}[match[2]]
        if value != result or a not in left:
            return False
        left.remove(a)
        if b not in left:
            return False
        left.remove(b)
        left.append(result)
    return left == [target]


def _follows(said: str, wanted: str) -> bool:
    """A line of the search: a pick word for word, a try by its operation and by whether the branch is dropped."""
    if said == wanted:
        return True
    if "|- Try" not in wanted:
        return False
    drop = "drop this branch"
    return said.split("=", maxsplit=1)[0] == wanted.split("=", maxsplit=1)[0] and (drop in said) == (drop in wanted)


def grade(answer: str, numbers: Sequence[int], target: int, reference: str) -> tuple[float, float]:
    """Accuracy: <Solution> solves it, however found. Partial: lines of the search before the first other one."""
    solution = tagged(answer, "Solution")
    if solution is not None and solves(solution, numbers, target):
        return 1.0, 1.0
    if TITLE not in answer:
        return 0.0, 0.0
    said = answer.rsplit(TITLE, maxsplit=1)[-1].strip().split("\n")
    wanted = reference.rsplit(TITLE, maxsplit=1)[-1].split(FOUND, maxsplit=1)[0].strip().split("\n")
    return 0.0, until_first_error([_follows(a, b) for a, b in zip(said, wanted, strict=False)], len(wanted))


def items(source: Source, level: str) -> list[Item]:
    examples = [f"# Example\nNumbers: {list(n)}\nTarget: {t}\n\n{solve(n, t)}" for n, t in SHOWN]
    template = source.template("countdown")
    found = []
    for row in source.rows(f"countdown/countdown_{level}.json"):
        numbers, target = row["nums"], row["target"]
        prompt = template.format(demonstration="\n\n".join(examples), nums=numbers, target=target)
        reference = solve(numbers, target)
        grader = functools.partial(grade, numbers=numbers, target=target, reference=reference)
        found.append(Item(prompt, reference, grader))
    return found
