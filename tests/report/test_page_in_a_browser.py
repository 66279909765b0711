"""The page where it is used: a real Chromium, without network, at a desk's width and a phone's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from browser import Browser, found
from sweepdata import HOSTILE, sweep

from kvfoot.report.contents import Report
from kvfoot.report.crossings import Critical, Crossing
from kvfoot.report.figures import figures
from kvfoot.report.page import page

METHODS, KEEPS, SAMPLES, PANELS = ("snapkv", "h2o", "adakv"), (0.9, 0.5, 0.1), 8, 4
OTHER = "../shared/models/Qwen2.5-Coder-0.5B-Instruct"
POINTS = PANELS * (1 + len(METHODS) * len(KEEPS))


@pytest.fixture(scope="module")
def report() -> Report:
    results = sweep(("niah-multikey", "chain"), METHODS, KEEPS, (2048, 4096), SAMPLES)
    results = [replace(r, cell=replace(r.cell, model=OTHER)) if r.cell.task == "chain" else r for r in results]
    answers = [f"{HOSTILE} {r.cell.method} {r.cell.value}" for r in results]
    hostile = [
        replace(r, prompt=HOSTILE + r.prompt + HOSTILE, reference=HOSTILE, answer=answer)
        for r, answer in zip(results, answers, strict=True)
    ]
    rows = [
        Critical(c, m, 0.94, Crossing(0.4), Crossing(0.45), Crossing(0.3), Crossing(0.5), 0.2, 16)
        for c in ("recall", "long output")
        for m in METHODS
    ]
    return Report.of(hostile, rows, [HOSTILE], notes=[HOSTILE])


@pytest.fixture(scope="module")
def file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(report), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if found() is None:
        pytest.skip("no Chromium here: make browser installs it on Debian")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(running: Browser) -> Iterator[Browser]:
    running.troubles.clear()
    yield running
    assert running.troubles == []


def count(browser: Browser, selector: str) -> int:
    return int(browser.js(f"document.querySelectorAll({selector!r}).length"))


def choose(browser: Browser, select: str, value: str) -> None:
    """As a user does: the choice, and its event."""
    browser.js(
        f"(s => {{ s.value = {value!r}; s.dispatchEvent(new Event('change')); }})(document.querySelector({select!r}))"
    )


def tip(browser: Browser) -> str:
    return str(browser.js("document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText"))


def test_every_chart_is_drawn(browser: Browser, file: Path) -> None:
    browser.open(file)
    for section in ("scores", "peak", "speed"):
        assert count(browser, f"#{section} figure") == PANELS
        assert count(browser, f"#{section} .m[data-p]") == POINTS
        assert count(browser, f"#{section} .l") == PANELS * len(METHODS)
    assert count(browser, "#scores .e") == PANELS * (1 + len(METHODS))
    assert count(browser, "#scores .cut") == PANELS
    assert count(browser, "#critical tbody tr") == 2 * len(METHODS)
    assert count(browser, "#heat figure") == len(METHODS)
    assert count(browser, "#heat rect.m") == len(METHODS) * 30 * 3
    assert count(browser, "#timeline .s .l") == 1 + len(METHODS)
    assert count(browser, "#depth figure") == 1 + len(METHODS)
    assert count(browser, "#depth rect.m") == (1 + len(METHODS)) * 2 * 5
    assert count(browser, "#wrong article") >= len(METHODS)
    assert count(browser, "#figures tbody tr") == POINTS


OUTSIDE = """[...document.querySelectorAll('main svg :is(text, .m)')].filter(part => {
  const a = part.getBoundingClientRect(), b = part.ownerSVGElement.getBoundingClientRect();
  return a.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1);
}).map(part => part.textContent || part.outerHTML)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 380, 768, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, file: Path, width: int, scheme: str) -> None:
    browser.open(file, width, 800, scheme)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js(OUTSIDE) == []
    paper = browser.js("getComputedStyle(document.body.parentElement).backgroundColor")
    assert paper == ("rgb(246, 247, 249)" if scheme == "light" else "rgb(12, 15, 19)")


def test_letters_are_readable_on_a_phone(browser: Browser, file: Path) -> None:
    browser.open(file, 380, 800)
    sizes = browser.js(
        "[...document.querySelectorAll('main svg text')].map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a)"  # noqa: E501
    )
    assert min(sizes) > 10.5


def test_pointing_at_a_mark_shows_its_record(browser: Browser, file: Path, report: Report) -> None:
    browser.open(file)
    assert tip(browser) == ""
    point = report.panels[0].curves[1].points[2]
    x, y = browser.middle(f"document.querySelector('#scores .m[data-p=\"{point.number}\"]')")
    browser.move(x + 1, y - 1)
    shown = tip(browser)
    record = point.samples[0].record
    for text in (
        report.panels[0].curves[1].label,
        "keep=0.1",
        f"{point.score:.3f}",
        f"{point.footprint.kv:.3f}, peak {point.footprint.peak:.3f}",
        record.revision,
        "NVIDIA H100 80GB HBM3",
        "chunk=512",
        "torch 2.13.0",
        "of the runs 0 to 7 (8)",
    ):
        assert text in shown
    browser.move(3, 3)
    assert tip(browser) == ""


def test_a_click_keeps_the_record_until_escape(browser: Browser, file: Path) -> None:
    browser.open(file, 380, 800)
    mark = browser.middle("document.querySelector('#peak .m')")
    browser.click(*mark)
    browser.move(3, 3)
    assert "revision" in tip(browser)
    left, right = browser.js("(b => [b.left, b.right])(document.getElementById('tip').getBoundingClientRect())")
    assert 0 <= left < right <= 380
    browser.key("Escape")
    assert tip(browser) == ""


def test_the_keyboard_reaches_every_mark(browser: Browser, file: Path) -> None:
    browser.open(file)
    browser.js("document.querySelector('#scores figure').focus()")
    seen = []
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowUp"):
        browser.key(key)
        seen.append(browser.js("document.querySelector('#scores .m.on').dataset.p"))
        assert "footprint" in tip(browser)
    assert len(set(seen)) >= 3
    browser.key("Enter")
    assert browser.js("document.getElementById('tip').classList.contains('kept')")
    browser.key("Escape")
    browser.js("document.querySelector('#heat figure').focus()")
    browser.key("ArrowRight")
    assert "layer 0, KV head 0" in tip(browser)
    browser.key("ArrowRight")
    assert "layer 1, KV head 0" in tip(browser)
    browser.key("ArrowDown")
    assert "layer 1, KV head 1" in tip(browser)


def test_choices_change_what_is_drawn(browser: Browser, file: Path) -> None:
    browser.open(file)
    choose(browser, "#heat .controls label:nth-of-type(2) select", "keep=0.1")
    titles = browser.js("[...document.querySelectorAll('#heat h3')].map(h => h.textContent)")
    assert titles == [f"{m} keep=0.1" for m in sorted(METHODS)]
    choose(browser, "#timeline .controls label:nth-of-type(2) select", "keep=0.9")
    x, y = browser.middle("[...document.querySelectorAll('#timeline .s[data-s=\"1\"] .m')].at(-1)")
    browser.move(x, y)
    assert "entries" in tip(browser)
    assert "keep=0.9" in tip(browser)
    choose(browser, "#panels", "chain, Qwen2.5-Coder-0.5B-Instruct")
    assert browser.js("[...document.querySelectorAll('#scores figure')].filter(f => !f.hidden).length") == 2
    choose(browser, "#wrong .controls select", "3")
    shown = "[...document.querySelectorAll('#wrong article')].filter(a => !a.hidden)"
    assert browser.js(f"[...new Set({shown}.map(a => a.dataset.miss))]") == ["3"]


def test_the_legend_picks_methods(browser: Browser, file: Path) -> None:
    browser.open(file)
    browser.js("document.querySelector('.chip[data-s=\"2\"]').click()")
    dimmed = browser.js("[...new Set([...document.querySelectorAll('#scores .s.dim')].map(g => g.dataset.s))].sort()")
    assert dimmed == ["1", "3"]
    assert browser.js("document.querySelector('.chip[data-s=\"2\"]').getAttribute('aria-pressed')") == "true"
    browser.js("document.getElementById('every').click()")
    assert count(browser, ".dim") == 0


def test_the_theme_can_be_changed(browser: Browser, file: Path) -> None:
    browser.open(file)
    browser.js("document.getElementById('theme').click()")
    assert browser.js("getComputedStyle(document.documentElement).backgroundColor") == "rgb(12, 15, 19)"
    browser.js("document.getElementById('theme').click()")
    assert browser.js("getComputedStyle(document.documentElement).backgroundColor") == "rgb(246, 247, 249)"


def test_hostile_texts_are_shown_and_do_not_run(browser: Browser, file: Path) -> None:
    browser.open(file)
    assert browser.js("window.hacked") is None
    assert count(browser, "script") == 2
    assert count(browser, "img") == 0
    shown = browser.js("document.querySelector('#wrong .pair pre').textContent")
    assert "</script><script>window.hacked = 1</script>" in shown
    mark = browser.js("document.querySelector('#wrong article .pair mark').textContent")
    assert mark == "full"
    browser.js("document.body.insertAdjacentHTML('beforeend', '<b id=probe></b>')")
    blocked = "new Promise(done => { const s = document.createElement('script'); s.textContent = 'window.hacked = 3'; document.body.append(s); setTimeout(() => done(window.hacked ?? null), 50); })"  # noqa: E501
    assert browser.js(blocked) is None
    assert [t for t in browser.troubles if "Content Security Policy" in t]
    browser.troubles.clear()


def test_figure_files_draw_by_themselves(browser: Browser, report: Report, tmp_path: Path) -> None:
    for name, text in figures(report).items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        browser.open(path, 960, 900, "dark")
        assert browser.js("document.querySelectorAll('.m[data-p]').length") == POINTS
        assert browser.js("getComputedStyle(document.querySelector('.back')).fill") == "rgb(20, 24, 29)"


def test_a_method_without_a_knob_and_full_attention_alone(browser: Browser, tmp_path: Path) -> None:
    results = sweep(("labels",), ("snapkv",), (0.5,), samples=3)
    path = tmp_path / "report.html"
    fixed = [replace(r, cell=replace(r.cell, knob=None, value=None)) for r in results]
    for shown, methods in ((fixed, 1), ([r for r in results if r.cell.is_full], 0)):
        path.write_text(page(Report.of(shown)), encoding="utf-8")
        browser.open(path)
        assert count(browser, "#heat figure") == methods
        assert count(browser, "#timeline .s .l") == 1 + methods
        assert count(browser, "#scores .m") == 1 + methods


def test_five_thousand_samples_stay_small(browser: Browser, tmp_path: Path) -> None:
    results: list[Any] = sweep(lengths=(2048, 4096), samples=33)
    start = monotonic()
    text = page(Report.of(results))
    print(f"{len(results)} samples, {len(text.encode()) / 1e6:.2f} MB, {monotonic() - start:.1f} s")
    assert len(results) > 5000
    assert len(text.encode()) < 3e6
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    browser.open(path)
    assert count(browser, "#scores .m") == 6 * 26
