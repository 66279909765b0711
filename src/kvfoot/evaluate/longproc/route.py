"""path_traversal: the one route between two cities of a graph in which every city has one way out."""

from __future__ import annotations

import functools

from kvfoot.evaluate.longproc.source import Item, Source, tagged, until_first_error

LEVELS = ("0.5k", "2k", "8k")


def grade(answer: str, reference: str) -> tuple[float, float]:
    """Accuracy: the text between <Route> and </Route> is the reference. Partial: lines before the first other one."""
    said = tagged(answer, "Route")
    if said is None:
        return 0.0, 0.0
    wanted = reference.strip().split("\n")
    right = [a == b for a, b in zip(said.split("\n"), wanted, strict=False)]
    accuracy = float(said == reference.strip())
    return accuracy, 1.0 if accuracy else until_first_error(right, len(wanted))


def items(source: Source, level: str) -> list[Item]:
    template = source.template("path_traversal")
    found = []
    for row in source.rows(f"path_traversal/path_traversal_{level}.json"):
        start, end = row["question_repr"]
        prompt = template.format(city_context=row["context_nl"], src_city=start, dst_city=end)
        reference = row["answer_nl"]
        text = f"<Route>\n{reference.strip()}\n</Route>"
        found.append(Item(prompt, text, functools.partial(grade, reference=reference)))
    return found
