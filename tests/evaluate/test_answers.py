"""Scores: one teacher-forced pass equals a greedy decode, and is not used where it would not."""

import math
from typing import Any

import pytest
import torch

from kvfoot.core.results import SampleResult
from kvfoot.evaluate import answers
from kvfoot.evaluate.sweep import Sweep
from kvfoot.evaluate.worker import Job, Worker
from tinyeval import Parrot, engine

METHODS = ("full", "snapkv:window=8", "adakv:window=8", "keynorm:skip=1", "random:window=8", "wgkv:seed=1:window=8")
STEPPED = ("h2o", "tova", "streaming", "streamingllm", "refreshkv:every=2:schedule=fixed")


def scored(task: Any, methods: tuple[str, ...], samples: int = 6, **options: Any) -> dict[Any, SampleResult]:
    """(method, evict, value, sample) -> result."""
    options = {"evict": ("post", "chunk"), "chunk": 32, "knobs": {"keep": (0.8, 0.5)}} | options
    sweep = Sweep("tiny", ("parrot",), methods, samples=samples, **options)
    pairs = sweep.cells([task], "1", "float32")
    cells, variants = [c for c, _ in pairs], [v for _, v in pairs]
    found = {}

    def put(place: int, result: SampleResult) -> None:
        cell = cells[place]
        assert result.cell == cell
        assert (cell.method, cell.evict, cell.value, result.index) not in found
        found[cell.method, cell.evict, cell.value, result.index] = result

    batch = sweep.batch or samples
    for start in range(0, samples, batch):
        wanted = {(c, i) for c in range(len(cells)) for i in range(start, min(samples, start + batch))}
        Worker(engine(), sweep).run(Job(task, 0, cells, variants, wanted), put)
    return found


@pytest.mark.parametrize("metric", ["exact", "prefix"])
@pytest.mark.parametrize("question", ["before", "after"])
def test_one_pass_is_a_greedy_decode(metric: str, question: str) -> None:
    task = Parrot(metric, wrong=(1, 4))
    forced = scored(task, METHODS, question=question)
    written = scored(task, METHODS, question=question, whole=True)
    assert forced.keys() == written.keys()
    assert not any(r.stepped for r in forced.values())
    assert all(r.stepped and r.complete for r in written.values())
    for key, one in forced.items():
        other = written[key]
        assert one.score == other.score, key
        assert other.answer.startswith(one.answer), key
        assert one.nll == other.nll
        assert one.record.footprint.kv == pytest.approx(other.record.footprint.kv, abs=1e-12)
        assert one.record.sequences[0].kept == other.record.sequences[0].kept
    full = [forced["full", None, None, i].score for i in range(6)]
    assert [s == 1 for s in full] == [i not in (1, 4) for i in range(6)]
    assert 0 < sum(r.score for r in forced.values()) < len(forced), "some are right and some are wrong"


def test_methods_that_evict_or_read_at_decode_are_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("teacher-forced")

    monkeypatch.setattr(answers, "_force", never)
    task = Parrot("prefix")
    along = scored(task, STEPPED)
    assert all(r.stepped for r in along.values())
    written = scored(task, STEPPED, whole=True)
    assert {k: r.score for k, r in along.items()} == {k: r.score for k, r in written.items()}
    scores = {r.score for r in along.values()}
    assert len(scores) > 2, "prefixes of several lengths"


def test_the_nll_is_what_a_plain_run_gives() -> None:
    """Of full attention against transformers' own logits; of an evicting method, stepping differs from one pass."""
    task = Parrot()
    results = scored(task, ("full",), samples=3)
    for i in range(3):
        example = task.sample(i, 0, 0, len)  # type: ignore[arg-type]
        tokenizer, model = engine().tokenizer, engine().model
        texts = (f"{example.document}\n\n{example.question}", example.reference)
        prompt, answer = (tokenizer(text)["input_ids"] for text in texts)
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1].double()
        nll = float(torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :]))
        assert results["full", None, None, i].nll == pytest.approx(nll, abs=2e-5)
        assert results["full", None, None, i].record.footprint.kv == 1.0


def test_batches_change_no_score() -> None:
    task = Parrot("prefix", wrong=(2,))
    one, all_ = (scored(task, (*METHODS, *STEPPED), batch=b) for b in (1, None))
    assert one.keys() == all_.keys()
    for key, a in one.items():
        b = all_[key]
        assert (a.score, a.answer, a.stepped, a.timeline) == (b.score, b.answer, b.stepped, b.timeline)
        assert a.nll == pytest.approx(b.nll, abs=2e-5)
        assert (a.record.footprint, a.record.memory.held_bytes) == (b.record.footprint, b.record.memory.held_bytes)
        assert a.record.memory.peak_bytes == b.record.memory.peak_bytes


def test_likelihood_writes_nothing() -> None:
    results = scored(Parrot("likelihood", answer=20), ("full", "h2o"), samples=2)
    for (name, *_), r in results.items():
        assert r.answer == ""
        assert r.score == pytest.approx(math.exp(-r.nll), abs=1e-5)
        assert r.stepped == (name == "h2o")


def test_a_text_metric_is_written_and_still_has_a_likelihood() -> None:
    from dataclasses import replace

    class Contains(Parrot):
        def sample(self, *arguments: Any) -> Any:
            made = super().sample(*arguments)
            return replace(made, score=lambda answer: float(made.reference[:3] in answer), room=9)

    results = scored(Contains("contains"), ("full",), samples=2)
    assert all(r.stepped and r.score == 1 and len(r.answer) == 9 and r.nll > 0 for r in results.values())
