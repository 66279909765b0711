"""Rows from files of every kind: exact lengths, documents apart, resumed where they were cut."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfoot.core.errors import UsageError
from kvfoot.train import reading
from kvfoot.train.ahead import Ahead
from kvfoot.train.packing import Packed, Row
from kvfoot.train.passkeys import ALPHABET, Passkeys, PasskeyShape
from kvfoot.train.reading import find_files, pieces

BOS = 1


def encode(text: str) -> list[int]:
    return [ord(c) + 2 for c in text]


def text_of(tokens: Any) -> str:
    return "".join(chr(t - 2) for t in tokens if t != BOS)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the first\n" for i in range(40)))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(("packed text. " * 60).encode()))
    lines = [json.dumps({"text": f"document {i} " + "x" * i}) for i in range(30)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n\n")
    return find_files([tmp_path])


def test_rows_are_full_and_made_of_documents(files: list[Path]) -> None:
    assert [path.name for path in files] == ["a.txt", "b.txt.gz", "c.jsonl"]
    source = Packed(files, encode, 100, seed=3, begin=[BOS])
    rows = source.take(30)
    whole = {path.name: "".join(p.text for p in pieces(path)) for path in files}
    seen = set()
    for row in rows:
        assert row.tokens.shape == (100,)
        assert [row.spans[0][0], row.spans[-1][1]] == [0, 100]
        assert all(a[1] == b[0] for a, b in zip(row.spans, row.spans[1:], strict=False))
        for a, b in row.spans:
            part = text_of(row.tokens[a:b].tolist())
            names = [name for name, text in whole.items() if part in text]
            assert names, part
            seen.update(names)
            if part.startswith("document"):
                assert part.count("document") == 1, "a line is a document"
    assert seen == set(whole)
    again = Packed(files, encode, 100, seed=4, begin=[BOS]).take(30)
    assert any(not torch.equal(a.tokens, b.tokens) for a, b in zip(rows, again, strict=True))


def test_every_text_is_read_in_order_and_again(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij" * 7)
    rows = Packed([path], encode, 30).take(7)
    assert "".join(text_of(row.tokens.tolist()) for row in rows) == "abcdefghij" * 21
    assert rows[2].spans == ((0, 10), (10, 30)), "the file ended and began again within the row"


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_cut_run_goes_on_with_the_same_rows(files: list[Path], cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 50)
    whole = Packed(files, encode, 70, seed=1, begin=[BOS]).take(14)
    first = Packed(files, encode, 70, seed=1, begin=[BOS])
    first.take(cut)
    state = json.loads(json.dumps(first.state()))
    second = Packed(files, encode, 70, seed=1, begin=[BOS])
    second.restore(state)
    for mine, theirs in zip(second.take(14 - cut), whole[cut:], strict=True):
        assert torch.equal(mine.tokens, theirs.tokens)
        assert mine.spans == theirs.spans


def test_a_long_text_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 64)
    for text in ("x" * 64, "x" * 65, "x" * 128, "line\n" * 50, "x" * 63, "", "ab\n" + "y" * 200):
        path = tmp_path / "a.txt"
        path.write_text(text)
        found = list(pieces(path))
        assert "".join(p.text for p in found) == text
        assert [p.last for p in found] == [False] * (len(found) - 1) + [True] * bool(text)
        assert all(len(p.text) <= 64 for p in found)
        assert list(pieces(path, 1)) == found[1:]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = tmp_path / "a.parquet"
    write_table(pa.table({"content": ["first", None, "third"], "n": [1, 2, 3]}), path)
    assert [p.text for p in pieces(path, field="content")] == ["first", "third"]
    with pytest.raises(UsageError, match="no column 'text': name one of content, n"):
        list(pieces(path))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UsageError, match=r"a.parquet: .*: give a whole parquet file"):
        list(pieces(path))


def test_bad_data_is_one_line(tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(UsageError, match="no such file"):
        find_files([tmp_path / "none"])
    (tmp_path / "x.md").write_text("x")
    with pytest.raises(UsageError, match="give files that end with"):
        find_files([tmp_path / "x.md"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no file in it ends with"):
        find_files([tmp_path / "empty"])
    with pytest.raises(UsageError, match=r"--data has 830 tokens, a row of --length 2,000 needs 1,170 more"):
        Packed([files[0]], encode, 2000).check()
    Packed([files[0]], encode, 830).check()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"content": 3}\n')
    with pytest.raises(UsageError, match=r"bad.jsonl, line 2: no JSON object with 'text'"):
        list(pieces(bad))
    bad.write_text('{"text": 3}\n')
    with pytest.raises(UsageError, match=r"line 1: 'text' is no text"):
        list(pieces(bad))
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes(files[1].read_bytes()[:30])
    with pytest.raises(UsageError, match="give whole files of UTF-8 text"):
        list(pieces(cut))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("é".encode("latin-1"))
    with pytest.raises(UsageError, match="give whole files of UTF-8 text"):
        list(pieces(latin))
    source = Packed(files, encode, 50)
    with pytest.raises(UsageError, match="the run read 1 files, --data has 3"):
        source.restore({"drawn": 3, "cursors": [[0, 0]]})


def test_targets() -> None:
    row = Row(torch.arange(10, 18), ((0, 3), (3, 8)), torch.tensor([0, 1, 1, 1, 0, 1, 0, 1], dtype=torch.bool))
    assert row.targets().tolist() == [11, 12, -100, -100, 15, -100, 17, -100]
    assert Row(row.tokens, row.spans).targets().tolist() == [11, 12, -100, 14, 15, 16, 17, -100]
    assert row.positions(True).tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert row.positions(False).tolist() == list(range(8))


@pytest.mark.parametrize("supervise", ["questions", "passkeys"])
def test_passkeys(files: list[Path], supervise: Any) -> None:
    text = Packed(files, encode, 3000, begin=[BOS])
    source = Passkeys(text, PasskeyShape(4, 5, shortest=1500, supervise=supervise), seed=2)
    rows = source.take(6)
    lengths = [len(row.tokens) for row in rows]
    assert min(lengths) >= 1500
    assert max(lengths) <= 3000
    assert len(set(lengths)) > 3
    for row in rows:
        assert row.supervised is not None
        whole = text_of(row.tokens.tolist())
        body, asked = whole[: whole.index("\nWhat is the first")], whole[whole.index("\nWhat is the first") :]
        for nth in ("first", "second", "third", "fourth"):
            words = body.split(f"the {nth} passkey is ")[1].split(".")[0]
            assert len(words.split()) == 5
            assert set(words.split()) <= set(ALPHABET)
            assert asked.count(f"The {nth} passkey is {words}.") == 1
        counted = text_of(row.tokens[row.supervised].tolist())
        if supervise == "questions":
            assert counted == asked
        else:
            assert counted.count(".") == 4
            assert "passkey" not in counted
        assert row.tokens[0] == BOS
    again = Passkeys(Packed(files, encode, 3000, begin=[BOS]), source.shape, seed=2)
    again.take(2)
    other = Passkeys(Packed(files, encode, 3000, begin=[BOS]), source.shape, seed=2)
    other.restore(json.loads(json.dumps(again.state())))
    assert torch.equal(other.take(1)[0].tokens, rows[2].tokens)
    with pytest.raises(UsageError, match=r"--length 100: 4 passkeys of 5 words with their questions take \d+ tokens"):
        Passkeys(Packed(files, encode, 100), source.shape)


def test_rows_made_ahead_are_the_same_rows(files: list[Path], tmp_path: Path) -> None:
    plain = Packed(files, encode, 70, seed=1).take(12)
    ahead = Ahead(Packed(files, encode, 70, seed=1), 2)
    found = [row for _ in range(3) for row in ahead.take(2)]
    state = json.loads(json.dumps(ahead.state()))
    again = Ahead(Packed(files, encode, 70, seed=1), 2)
    again.restore(state)
    found += [row for _ in range(3) for row in again.take(2)]
    for mine, theirs in zip(found, plain, strict=True):
        assert torch.equal(mine.tokens, theirs.tokens)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "%s"}\n{"no": 1}\n' % ("x" * 200))
    source = Ahead(Packed([bad], encode, 100), 1)
    with pytest.raises(UsageError, match="line 2: no JSON object"):
        list(map(source.take, [1] * 4))
