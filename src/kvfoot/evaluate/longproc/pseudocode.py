"""pseudo_to_code: C++ for lines of pseudocode, judged by running it on the problem's cases in a sandbox."""

from __future__ import annotations

import functools
import re

from kvfoot.evaluate.longproc.source import Item, Source
from kvfoot.evaluate.sandbox import passes

LEVELS = ("0.5k", "2k")
CASES = 10
"""Cases run, of those that a problem has; three seconds each."""
HEADERS = (
    "cstdio iostream vector algorithm numeric cmath cstring set map queue stack list fstream climits cassert iomanip "
    "sstream bitset"
)
PROLOGUE = "".join(f"#include <{name}>\n" for name in HEADERS.split()) + "using namespace std;\n"


def program(answer: str) -> str | None:
    """What stands between ```cpp (or ```c++) and the last fence; None without both."""
    fenced = re.search(r"```cpp([\s\S]*)```", answer.replace("```c++", "```cpp"))
    return fenced[1] if fenced else None


def grade(answer: str, cases: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]) -> tuple[float, float]:
    """1 where the program compiles and prints every case's lines, to the byte. There is no partial accuracy."""
    code = program(answer)
    if code is None:
        return 0.0, 0.0
    tests = [tuple(("\n".join(lines) + "\n").encode() for lines in case) for case in cases[:CASES]]
    passed = float(passes(PROLOGUE + code, [(given, wanted) for given, wanted in tests]))
    return passed, passed


def items(source: Source, level: str) -> list[Item]:
    template = source.template("pseudo_to_code")
    found = []
    for row in source.rows(f"pseudo_to_code/pseudo_to_code_{level}.json"):
        prompt = template.format(pseudocode="\n".join(row["pseudocode_lines"]))
        cases = tuple((tuple(given), tuple(wanted)) for given, wanted in row["testcases"][:CASES])
        code = "\n".join(row["code_lines"])
        found.append(Item(prompt, f"```cpp\n{code}\n```", functools.partial(grade, cases=cases)))
    return found
