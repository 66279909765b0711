"""Context synthesis: every answer stands once in the notes, under its subject; a function of seed and number."""

import json
from pathlib import Path

import pytest
import torch

from kvfoot.core.errors import UsageError
from kvfoot.train.packing import Packed
from kvfoot.train.synthesis import INTRODUCTION, KINDS, Synthesis, SynthesisShape

BOS = 256
TEXT = "".join(f"Sentence number {i} of a book that goes on and on.\n" for i in range(3000))
SMALL = SynthesisShape(notes=5, facts=3, pairs=4, shortest=1500)


def text(tmp_path: Path, length: int = 4000) -> Packed:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return Packed([path], lambda x: list(x.encode()), length, begin=[BOS])


def said(tokens: torch.Tensor) -> str:
    return bytes(x for x in tokens.tolist() if x != BOS).decode()


@pytest.mark.parametrize("supervise", ["answers", "questions"])
def test_a_row(tmp_path: Path, supervise: str) -> None:
    source = Synthesis(text(tmp_path), SynthesisShape(5, 3, 4, supervise, shortest=1500), seed=3)  # type: ignore[arg-type]
    rows = source.take(8)
    assert min(len(r.tokens) for r in rows) >= 1500
    assert max(len(r.tokens) for r in rows) <= 4000
    assert len({len(r.tokens) for r in rows}) > 4
    questions = set()
    for row in rows:
        assert row.tokens[0] == BOS
        assert row.spans == ((0, len(row.tokens)),)
        whole = said(row.tokens)
        assert whole.startswith(INTRODUCTION)
        body, *pairs = whole.split("\n\nQuestion: ")
        assert len(pairs) == 4
        notes = [part for part in body.split("\n\n") if any(s in part for s in ("box ", "founded in", "led by", "door",
                 "people", "sells ", "buys ", "head of", "charge of", "beginning of", "began", "quality"))]  # fmt: skip
        assert len(notes) == 5
        for pair in pairs:
            question, answer = pair.split("\nAnswer: ")
            questions.add(question.split(" ")[0])
            kind = next(k for k in KINDS if question.startswith(k.question.split("{s}")[0]))
            before, after = kind.question.split("{s}")
            subject = question.removeprefix(before).removesuffix(after)
            (note,) = [n for n in notes if subject.lower() in n.lower()]
            forms = [form.format(s=subject, v=answer.removesuffix(".")).lower() for form in kind.said]
            assert sum(form in note.lower() for form in forms) == 1, (question, note)
        counted = said(row.tokens[row.supervised])
        if supervise == "answers":
            assert counted == "".join(" " + pair.split("\nAnswer: ")[1] for pair in pairs)
        else:
            assert counted == whole[len(body) :]
    assert len(questions) > 2


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    plain = Synthesis(text(tmp_path), SMALL, seed=2).take(6)
    first = Synthesis(text(tmp_path), SMALL, seed=2)
    first.take(3)
    again = Synthesis(text(tmp_path), SMALL, seed=2)
    again.restore(json.loads(json.dumps(first.state())))
    for mine, theirs in zip(again.take(3), plain[3:], strict=True):
        assert torch.equal(mine.tokens, theirs.tokens)
    other = Synthesis(text(tmp_path), SMALL, seed=4).take(1)[0]
    assert said(other.tokens) != said(plain[0].tokens)


@pytest.mark.parametrize(
    ("shape", "length", "line"),
    [
        ((5, 3, 4), 300, r"--length 300: 5 notes of 3 facts with 4 questions take up to \d+ tokens: give more"),
        ((5, 9, 4), 4000, "5 notes of 9 facts: give 1 or more notes of 1 to 6"),
        ((1, 2, 4), 4000, "4 questions about 2 facts: give 1 to that many"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, shape: tuple[int, int, int], length: int, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        Synthesis(text(tmp_path, length), SynthesisShape(*shape))
