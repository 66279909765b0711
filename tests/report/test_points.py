"""Samples folded into points, curves and panels; intervals against values worked out elsewhere."""

from dataclasses import replace

import pytest
from sweepdata import sweep

from kvfoot.core.results import Cell
from kvfoot.report.interval import interval, student
from kvfoot.report.points import labels, panels, series, setting

CELL = Cell("m", "r", "keys", "recall", "exact", 1024, "snapkv", {"window": 32}, "keep", 0.5, "post", 512)


def test_wilson_intervals() -> None:
    # Wilson's interval of 9 of 10 and of 20 of 20, as in any table of it
    assert interval([1.0] * 9 + [0.0]) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert interval([1.0] * 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert interval([0.0] * 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert interval([]) is None


def test_intervals_of_other_scores_are_students() -> None:
    assert [student(n) for n in (4, 9, 19, 30)] == pytest.approx([2.7764, 2.2622, 2.0930, 2.0423], abs=2e-3)
    assert interval([10.0, 12.0, 14.0, 16.0, 18.0]) == pytest.approx((14 - 3.926, 14 + 3.926), abs=5e-3)
    assert interval([10.0, 12.0]) is None


def test_a_panel_per_task_and_length_and_full_attention_first() -> None:
    found = panels(sweep(tasks=("labels", "chain"), methods=("snapkv", "h2o"), lengths=(4096, 2048), samples=2))
    assert [(p.task, p.length) for p in found] == [
        ("labels", 2048),
        ("labels", 4096),
        ("chain", 2048),
        ("chain", 4096),
    ]
    assert series(found) == ["full", "h2o", "snapkv"]
    for panel in found:
        assert [c.label for c in panel.curves] == ["full", "h2o", "snapkv"]
        assert [[p.cell.value for p in c.points] for c in panel.curves[1:]] == [[0.9, 0.7, 0.5, 0.3, 0.1]] * 2
    numbers = [p.number for panel in found for c in panel.curves for p in c.points]
    assert sorted(numbers) == list(range(4 * 11))


def test_a_point_is_the_mean_over_samples_and_seeds() -> None:
    results = sweep(tasks=("labels",), methods=("snapkv",), keeps=(0.5,), samples=4)
    scored = [replace(r, score=float(i % 4), nll=0.5 * (i % 4)) for i, r in enumerate(results)]
    other = [replace(r, cell=replace(r.cell, seed=1), score=5.5) for r in results if not r.cell.is_full]
    (panel,) = panels([*scored, *other])
    full, snapkv = (c.points[0] for c in panel.curves)
    assert (full.n, full.score, full.nll) == (4, 1.5, 0.75)
    assert (snapkv.n, snapkv.score) == (8, 3.5)
    records = [s.record for s in snapkv.samples]
    assert snapkv.footprint.kv == pytest.approx(sum(r.footprint.kv for r in records) / 8)
    assert snapkv.decode == pytest.approx(8000 / sum(r.timings.decode_ms_per_token or 0 for r in records))
    assert snapkv.prefill == pytest.approx(900)
    assert len(snapkv.kept) == 30
    assert snapkv.kept[7][2] == pytest.approx(0.5, abs=1e-3)


def test_panels_name_the_model_where_there_are_several() -> None:
    results = sweep(tasks=("labels",), methods=("snapkv",), keeps=(0.5,), samples=1)
    assert panels(results)[0].heading == "labels, 4,096 tokens"
    other = [replace(r, cell=replace(r.cell, model="/models/other", length=0)) for r in results]
    again = [replace(r, cell=replace(r.cell, model="mine/other", revision="0123456789", task="chain")) for r in results]
    one, two, three = panels([*results, *other, *again])
    assert (one.heading, one.subject) == ("labels, 4,096 tokens, smollm2", "labels, smollm2")
    assert two.heading == "labels, other 12fd25f7"
    assert three.subject == "chain, other 01234567"


def test_labels_say_what_differs_and_no_more() -> None:
    same = [CELL, replace(CELL, value=0.3), replace(CELL, method="h2o", options={"window": 64})]
    assert labels(same) == ["snapkv", "snapkv", "h2o"]
    many = [
        CELL,
        replace(CELL, options={"window": 64}),
        replace(CELL, evict="chunk"),
        replace(CELL, knob="budget", value=256.0),
    ]
    assert labels(many) == [
        "snapkv post window=32 by keep",
        "snapkv post window=64 by keep",
        "snapkv chunk window=32 by keep",
        "snapkv post window=32 by budget",
    ]
    assert labels([CELL, replace(CELL, chunk=1024)]) == ["snapkv chunk=512", "snapkv chunk=1024"]
    knob = replace(CELL, knob="window", value=32.0, evict=None)
    assert labels([knob, replace(knob, options={"window": 64}, value=64.0)]) == ["snapkv", "snapkv"]
    assert setting(replace(CELL, knob="budget", value=256.0)) == "budget=256"


def test_the_line_needs_a_baseline_and_a_metric_of_which_more_is_better() -> None:
    results = sweep(tasks=("labels",), methods=("snapkv",), keeps=(0.5,), samples=5)
    (panel,) = panels([replace(r, score=0.8) for r in results])
    assert panel.threshold(0.9) == pytest.approx(0.72)
    (lost,) = panels([r for r in results if not r.cell.is_full])
    assert lost.full is None
    assert lost.threshold(0.9) is None
    (worse,) = panels([replace(r, cell=replace(r.cell, metric="perplexity"), score=8.0) for r in results])
    assert worse.lower
    assert worse.threshold(0.9) is None
