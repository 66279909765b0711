"""`kvfoot report` on a sweep's folder: the page, the Markdown, and what is refused."""

import stat
from pathlib import Path

import pytest
from sweepdata import sweep

from kvfoot.cli.app import main
from kvfoot.core.results import SampleResult
from kvfoot.evaluate.critical import critical
from kvfoot.evaluate.export import write
from kvfoot.evaluate.store import Store

METHODS = ("snapkv", "streaming")


def fill(folder: Path, results: list[SampleResult]) -> None:
    store = Store(folder)
    cells = {r.cell.key: r.cell for r in results}
    numbers = dict(zip(cells, store.numbers(list(cells.values())), strict=True))
    for result in results:
        store.put(numbers[result.cell.key], result)
    store.close()


@pytest.fixture
def results() -> list[SampleResult]:
    return sweep(("labels", "chain"), METHODS, samples=6)


@pytest.fixture
def folder(tmp_path: Path, results: list[SampleResult]) -> Path:
    fill(tmp_path / "sweep", results)
    return tmp_path / "sweep"


def test_page_and_markdown(
    folder: Path, results: list[SampleResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(folder), "--markdown", str(tmp_path / "md" / "new")]) == 0
    written = capsys.readouterr().out.split()
    assert written == [
        str(folder / "report.html"),
        *(str(tmp_path / "md" / "new" / n) for n in ("score.svg", "peak.svg", "speed.svg", "README.md")),
    ]
    assert all(Path(p).is_file() for p in written)
    assert stat.S_IMODE((folder / "report.html").stat().st_mode) & 0o600 == 0o600
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert f"--out {folder}" in html
    text = (tmp_path / "md" / "new" / "README.md").read_text(encoding="utf-8")
    for x in critical(results, 0.9):
        assert f"| {x.category} | {x.method} | " in text
        assert f"{x.last.footprint:.3f}" in html
        assert f"{x.last.footprint:.3f}" in text


def test_the_fraction_and_the_place(folder: Path, results: list[SampleResult], tmp_path: Path) -> None:
    out = tmp_path / "half.html"
    assert main(["report", str(folder), "--fraction", "0.5", "--out", str(out)]) == 0
    html = out.read_text(encoding="utf-8")
    assert "50% of full attention" in html
    for x in critical(results, 0.5):
        assert f"{x.first.footprint:.3f}" in html
    assert not (folder / "report.html").exists()


def test_an_export_has_its_page_beside_it(results: list[SampleResult], tmp_path: Path) -> None:
    write(results, tmp_path / "results.json.gz")
    assert main(["report", str(tmp_path / "results.json.gz")]) == 0
    assert "<h3>long output</h3>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_unfinished_sweep_has_a_page_that_says_so(tmp_path: Path, results: list[SampleResult]) -> None:
    fill(tmp_path / "part", results[:-1])
    assert main(["report", str(tmp_path / "part")]) == 0
    html = (tmp_path / "part" / "report.html").read_text(encoding="utf-8")
    assert "No critical footprints: different sample sets cannot be compared" in html
    assert "No critical footprints were computed." in html


def test_results_that_do_not_compare_get_their_own_rows(tmp_path: Path, results: list[SampleResult]) -> None:
    from dataclasses import replace

    other = [replace(r, cell=replace(r.cell, model="recall")) for r in results]
    fill(tmp_path / "two", [*results, *other])
    assert main(["report", str(tmp_path / "two")]) == 0
    html = (tmp_path / "two" / "report.html").read_text(encoding="utf-8")
    for category in ("in-context learning", "long output"):
        for model in ("smollm2", "recall"):
            assert f"<h3>{category}, {model}</h3>" in html


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no such folder"),
        (["empty"], "no results.sqlite"),
        (["sweep", "--fraction", "0"], "--fraction 0 is outside (0, 1]"),
        (["sweep", "--out", "nowhere/page.html"], "--out nowhere/page.html: give a file in a folder that exists"),
        (["sweep", "--out", "empty"], "--out empty: give a file"),
        (["sweep", "--markdown", "file"], "--markdown file: is a file"),
    ],
)
def test_refusals(
    arguments: list[str], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    (folder.parent / "file").touch()
    before = sorted(folder.parent.rglob("*"))
    assert main(["report", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert sorted(folder.parent.rglob("*")) == before


def test_a_folder_without_samples_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "new", [])
    assert main(["report", str(tmp_path / "new")]) == 2
    assert "no finished samples" in capsys.readouterr().err
