"""tom_tracking: where an agent is, where an object is, and where the agent believes it is, step by step."""

from __future__ import annotations

import functools
import re
import string

from kvfoot.evaluate.longproc.source import Item, Source, until_first_error

LEVELS = ("0.5k", "2k", "8k")
_FREE = re.compile(r"\b(a|an|the|on|in|at|step|thinks|think|believes|believe|is|are|of|location|know|knows|belief)\b")
_STEP = re.compile(r"- Step \d+:")


def steps(text: str) -> list[str]:
    """The lines "- Step N: ..." from the last "- Step 0:" on, without case, punctuation and empty words."""
    lines = [line for line in text.splitlines() if line.strip().startswith("-")]
    joined = "\n".join(lines)
    lines = joined[max(0, joined.rfind("- Step 0:")) :].strip().split("\n")
    bare = (
        "".join(c for c in line.lower() if c not in string.punctuation + "’") for line in lines if _STEP.match(line)
    )
    return [" ".join(_FREE.sub(" ", line).split()) for line in bare]


def grade(answer: str, reference: str) -> tuple[float, float]:
    """Accuracy: all steps are the reference's. Partial: steps before the first other one."""
    said, wanted = steps(answer), steps(reference)
    accuracy = float(said == wanted)
    right = [a == b for a, b in zip(said, wanted, strict=False)]
    return accuracy, until_first_error(right, len(wanted))


def items(source: Source, level: str) -> list[Item]:
    template = source.template("tom_tracking")
    found = []
    for row in source.rows(f"tom_tracking/tom_tracking_{level}.json"):
        prompt = template.format(story=row["story"], question=row["question"])
        found.append(Item(prompt, row["solution"], functools.partial(grade, reference=row["solution"])))
    return found
