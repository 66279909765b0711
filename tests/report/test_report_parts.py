"""What stands in a report: answers that part, warnings, the command, tables, and texts that stay texts."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from sweepdata import HOSTILE, sweep

from kvfoot.core.errors import UsageError
from kvfoot.core.results import SampleResult
from kvfoot.report.command import commands
from kvfoot.report.contents import Report
from kvfoot.report.crossings import Critical, Crossing
from kvfoot.report.data import embed, payload
from kvfoot.report.figures import figures
from kvfoot.report.frame import Scale, tick
from kvfoot.report.header import facts, warnings
from kvfoot.report.markdown import markdown, plain
from kvfoot.report.page import page
from kvfoot.report.points import panels
from kvfoot.report.wrong import common, misses


def small(**how: Any) -> list[SampleResult]:
    return sweep(**({"tasks": ("labels",), "methods": ("snapkv",), "samples": 4} | how))


def critical(method: str = "snapkv", last: float = 0.4, bound: str = "") -> Critical:
    at = Crossing(last, bound)
    return Critical("recall", method, 0.94, at, Crossing(last + 0.1), Crossing(last - 0.05), at, 0.19, 40)


def test_the_first_setting_that_loses_and_its_heaviest_losses() -> None:
    scores = {None: 1.0, 0.9: 1.0, 0.7: 0.75, 0.5: 0.0, 0.3: 0.0, 0.1: 0.0}
    results = [replace(r, score=scores[r.cell.value], answer="a b c") for r in small()]
    heavy = [replace(r, score=0.25, answer="a x c") if r.cell.value == 0.7 and r.index == 2 else r for r in results]
    (panel,) = panels(heavy)
    first, second = misses(panel)
    assert (first.point.cell.value, first.theirs.index, first.lost) == (0.7, 2, 4)
    assert (first.same, first.full_rest, first.their_rest) == ("a ", "b c", "x c")
    assert second.theirs.index == 0
    assert (second.same, second.full_rest, second.their_rest) == ("a b c", "", "")


def test_misses_compare_the_same_sample_only_and_know_what_is_worse() -> None:
    results = [replace(r, score=1.0 if r.cell.is_full else 0.0) for r in small(keeps=(0.5,))]
    (panel,) = panels([r for r in results if r.cell.is_full == (r.index < 2)])
    assert misses(panel) == []
    (lower,) = panels([replace(r, cell=replace(r.cell, metric="perplexity")) for r in results])
    assert misses(lower) == []
    assert len(misses(panels(results)[0])) == 2


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [("red green", "red grey", 4), ("red", "red", 3), ("red", "red green", 0), ("", "x", 0), ("a  b", "a  c", 3)],
)
def test_answers_part_at_a_word(one: str, other: str, shared: int) -> None:
    assert common(one, other) == shared


def test_what_makes_figures_incomparable_is_said() -> None:
    results = small()
    assert warnings(panels(results)) == []
    assert "no baseline" in warnings(panels([r for r in results if not r.cell.is_full]))[0]
    fewer = warnings(panels(results[:-1]))
    assert fewer == ["labels, 4,096 tokens: snapkv did not answer the same samples as full attention."]
    moved = replace(results[0], record=replace(results[0].record, device={"type": "cpu", "name": "x", "threads": 2}))
    assert warnings(panels([moved, *results[1:]])) == ["The records name 2 devices: times compare only within one."]
    stopped = replace(results[0], record=replace(results[0].record, interrupted=True))
    assert "1 samples come from runs that were interrupted." in warnings(panels([stopped, *results[1:]]))


def test_the_header_and_the_command() -> None:
    found = panels(sweep(tasks=("labels", "chain"), methods=("snapkv", "h2o"), lengths=(2048, 4096), samples=3))
    said = dict(facts(found))
    assert said["samples"] == "3 a point, 132 in all; seed 0"
    assert said["settings"] == "keep=0.9, keep=0.7, keep=0.5, keep=0.3, keep=0.1"
    assert said["device"] == "NVIDIA H100 80GB HBM3 (cuda)"
    assert commands(found, "my sweep") == [
        "kvfoot eval --model smollm2 --tasks labels,chain --lengths 2048,4096 --methods full,h2o,snapkv "
        "--knob keep=0.9,0.7,0.5,0.3,0.1 --evict chunk --chunk 512 --samples 3 --seed 0 --out 'my sweep'"
    ]


def test_scales_are_round() -> None:
    assert Scale.over([0.0, 47.0]).ticks == [0, 10, 20, 30, 40, 50]
    assert [tick(v, 0.25) for v in Scale.over([0.0, 1.0], 4).ticks] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert tick(2000, 500) == "2,000"
    assert Scale.over([3.0, 3.0]).share(3.0) == pytest.approx(0.5)


def test_embedded_data_cannot_end_its_element() -> None:
    text = embed({"a": HOSTILE})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": HOSTILE}


def test_what_the_script_gets() -> None:
    results = small(tasks=("niah-multikey",), keeps=(0.5,), samples=10)
    data = payload(panels(results))
    assert data["series"] == ["full", "snapkv"]
    point = next(p for p in data["points"].values() if p["setting"])
    line = point["line"]
    assert (line["sample"], line["rows"], len(line["seen"])) == (0, 90, len(line["stored"]))
    assert line["seen"][-1] == results[0].record.tokens["prompt"] + results[0].record.tokens["generated"] - 1
    assert [n for n, _ in point["depth"]] == [3, 2, 2, 2, 1]
    rows = dict(point["rows"])
    assert rows["seed"] == "of the samples 0, of the runs 0 to 9 (10)"
    assert ("revision", results[0].record.revision) in [tuple(r) for r in data["records"][point["record"]]]
    assert HOSTILE[:9] not in json.dumps(data)


def test_a_long_timeline_is_thinned_and_keeps_the_prompt_s_end() -> None:
    results = small(keeps=(0.5,), samples=1)
    prompt = results[0].record.tokens["prompt"]
    long = [replace(r, timeline=[(n, n) for n in range(1, 3 * prompt)]) for r in results]
    line = payload(panels(long))["points"][0]["line"]
    assert len(line["seen"]) <= 242
    assert prompt in line["seen"]
    assert line["seen"][-1] == 3 * prompt - 1


def test_records_without_parts_are_no_trouble() -> None:
    results = []
    for r in small(keeps=(0.5,)):
        timings = replace(r.record.timings, prefill_s=0.0, decode_ms_per_token=None)
        record = replace(r.record, sequences=[], timings=timings)
        results.append(replace(r, nll=None, timeline=[], figures={}, record=record))
    text = page(Report.of(results))
    assert "No times were recorded." in text
    assert "No critical footprints were computed." in text
    assert list(figures(Report.of(results))) == ["score.svg", "peak.svg"]


def test_figures_are_documents_of_their_own() -> None:
    made = figures(Report.of(small(methods=("snapkv", "streaming"))))
    assert list(made) == ["score.svg", "peak.svg", "speed.svg"]
    for text in made.values():
        root = ET.fromstring(text)
        marks = [e for e in root.iter("{http://www.w3.org/2000/svg}path") if e.get("class") == "m" and e.get("data-p")]
        assert len(marks) == 11
        assert "prefers-color-scheme:dark" in text


def test_markdown_quotes_figures_and_stays_text() -> None:
    report = Report.of(small(), [critical(), critical("h2o", 0.2, "<")], ["kvfoot eval"], notes=["a | <b>"])
    text = markdown(report, figures(report))
    assert "| recall | h2o | &lt; 0.200 | 0.150 to &lt; 0.200 | 0.300 | 0.190 | 0.940 | 40 |" in text
    assert text.index("| recall | h2o") < text.index("| recall | snapkv")
    assert "](score.svg)" in text
    assert "> a \\| &lt;b&gt;" in text
    point = report.panels[0].curves[1].points[0]
    assert f"| snapkv | keep=0.9 | 4 | {point.score:.3f} |" in text
    assert plain("a\nb") == "a b"


def test_nothing_to_show_and_no_fraction_are_refused() -> None:
    with pytest.raises(UsageError, match="no finished samples"):
        Report.of([])
    with pytest.raises(UsageError, match=r"--fraction 1.5 is outside"):
        Report.of(small(), fraction=1.5)


def test_report_does_not_import_torch() -> None:
    code = (
        "import sys, kvfoot.report.page, kvfoot.report.markdown, kvfoot.report.figures, kvfoot.report.command;"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
