"""html_to_tsv: a table out of a web page. Row F1 of LongProc: cells normalized, rows compared whole, order free."""

from __future__ import annotations

import csv
import functools
import re
import string

from kvfoot.evaluate.longproc.source import Item, Source

LEVELS = ("0.5k", "2k", "8k")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
BLANK = "NA"


def cell(text: str) -> str:
    """Lower case without ASCII punctuation, articles and any space: "The  U.S." is "us"."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return "".join(_ARTICLES.sub(" ", bare).split())


def table(text: str) -> list[tuple[str, ...]] | None:
    """The rows below the heading, normalized; None where there is nothing below it.

    A last line of another width is taken for an ending remark and dropped; any other such line becomes blanks.
    """
    lines = list(csv.reader(text.strip().split("\n"), delimiter="\t"))
    if len(lines) < 2:
        return None
    head, rows = lines[0], lines[1:]
    if len(rows[-1]) != len(head):
        rows = rows[:-1]
    kept = [row if len(row) == len(head) else [BLANK] * len(head) for row in rows]
    return [tuple(cell(value) for value in row) for row in kept]


def row_f1(answer: str, reference: str) -> float:
    """Precision: rows of the answer that the reference has; recall: the reverse. A repeated row counts each time.

    The answer stands between ```tsv and the last fence, or is everything after ```tsv, or everything.
    """
    fenced = re.search(r"```tsv([\s\S]*)```", answer)
    body = fenced[1] if fenced else answer.split("```tsv")[1] if "```tsv" in answer else answer
    try:
        said, wanted = table(body), table(reference)
    except csv.Error:
        return 0.0
    if not said or not wanted or len(said[0]) != len(wanted[0]):
        return 0.0
    precision = sum(row in wanted for row in said) / len(said)
    recall = sum(row in said for row in wanted) / len(wanted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _grade(answer: str, reference: str) -> tuple[float, float]:
    score = row_f1(answer, reference)
    return score, score


def items(source: Source, level: str) -> list[Item]:
    template = source.template("html_to_tsv")
    found = []
    for row in source.rows(f"html_to_tsv/html_to_tsv_{level}.json"):
        page = source.read("html_to_tsv/" + row["html_path"])
        fields = {key: row[key] for key in ("task_topic", "task_description", "tsv_header", "filtering_instruction")}
        prompt = template.format(html_str=page, **fields)
        grade = functools.partial(_grade, reference=row["gt"])
        found.append(Item(prompt, f"```tsv\n{row['gt'].strip()}\n```", grade))
    return found
