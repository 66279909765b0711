"""The search: what it finds, how much of the grid it runs, how sure it is; and fidelity along a continuation."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method
from kvfoot.core.settings import Settings
from kvfoot.evaluate.judge import Agreement, Answers, Verdict
from kvfoot.evaluate.sweep import Sweep, Variant
from kvfoot.evaluate.tune import Candidate, rounds, search, settings_of
from tinyeval import Parrot, engine

FULL = Variant(find_method("full"))
KEEPS = tuple(k / 20 for k in range(1, 20))


def variants(names: Sequence[str] = ("snapkv", "streaming", "random"), keeps: Sequence[float] = KEEPS) -> list[Variant]:
    return [Variant(find_method(name), "keep", keep, "post") for name in names for keep in keeps]


def graded(slope: dict[str, float], noise: float = 0.0) -> Any:
    """A judge in which a method scores 1 - slope (1 - keep), and its footprint is what it keeps."""
    seen: dict[tuple[str, float], set[int]] = {}

    def judge(settings: Sequence[Variant], index: int) -> list[Verdict]:
        assert settings[0] is FULL
        found = []
        for v in settings:
            key = v.method.name, v.value or 1.0
            assert index not in seen.setdefault(key, set()) or v is FULL, "a pair is run twice"
            seen[key].add(index)
            shift = Random(f"{key}{index}").gauss(0, noise) if v is not FULL else 0.0
            found.append(Verdict(1 - slope.get(key[0], 0.0) * (1 - key[1]) + shift, key[1]))
        return found

    judge.seen = seen  # type: ignore[attr-defined]
    return judge


def test_finds_the_smallest_footprint_that_passes() -> None:
    """snapkv loses 0.1 a unit: 0.95 needs keep >= 0.5; the others lose more."""
    judge = graded({"snapkv": 0.1, "streaming": 0.5, "random": 1.0})
    tuned = search(variants(), judge, 24, 0.949, full=FULL)
    assert (tuned.chosen.variant.method.name, tuned.chosen.variant.value) == ("snapkv", 0.5)
    assert tuned.passed
    assert (len(tuned.chosen.verdicts), len(tuned.checked.verdicts)) == (16, 8)
    assert tuned.judged < tuned.grid / 4, "halving, not the whole grid"
    held = {i for (name, _), s in judge.seen.items() if name != "full" for i in s if i >= 16}
    assert held == set(range(16, 24))
    assert sum(any(i >= 16 for i in s) for (name, _), s in judge.seen.items() if name != "full") == 1


def test_noise_is_said() -> None:
    judge = graded({"snapkv": 0.1, "streaming": 0.5, "random": 1.0}, noise=0.03)
    tuned = search(variants(), judge, 24, 0.949, full=FULL)
    low, high = tuned.checked.interval()
    assert low < tuned.checked.score < high
    # eight prompts with a deviation of 0.03: 4 standard errors of 0.0106
    assert 0.02 < high - low < 0.07
    assert tuned.checked.interval() == (low, high)
    found = settings_of(tuned, Sweep("m", ("t",), ("snapkv",)), "agreement", 0.949).found
    assert found["interval"] == [round(low, 4), round(high, 4)]
    assert found["confirmed"] == (tuned.checked.score >= 0.949)


def test_nothing_passes() -> None:
    tuned = search(variants(), graded({"snapkv": 3, "streaming": 3, "random": 3}), 9, 0.95, full=FULL)
    assert tuned.chosen.variant is FULL
    assert tuned.checked.score == 1.0
    assert settings_of(tuned, Sweep("m", ("t",), ("snapkv",)), "exact", 0.95).method == "full"


def test_scores_are_of_full_attentions() -> None:
    one = Candidate(FULL, [Verdict(0.4, 1), Verdict(0.0, 1)], [Verdict(0.5, 1), Verdict(0.0, 1)])
    assert one.score == pytest.approx(0.8)


def test_rounds() -> None:
    assert rounds(57, 16) == [(2, 29), (2, 15), (4, 8), (8, 4), (16, 3)]
    assert rounds(2, 16) == [(16, 2)]
    for settings, prompts in ((200, 3), (7, 40), (1000, 100)):
        plan = rounds(settings, prompts)
        assert plan[-1][0] == prompts
        assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in pairwise(plan))


def test_refusals() -> None:
    with pytest.raises(UsageError, match="2 prompts are too few"):
        search(variants(), graded({}), 2, 0.9, full=FULL)
    with pytest.raises(UsageError, match="full attention scores 0"):
        search(variants(), lambda s, i: [Verdict(0.0, 1.0)] * len(s), 6, 0.9, full=FULL)
    with pytest.raises(UsageError, match=r"--target 1\.2"):
        search(variants(), graded({}), 6, 1.2, full=FULL)


@pytest.mark.parametrize("question", ["before", "after"])
def test_agreement_is_along_full_attentions_own_words(question: str) -> None:
    """Against logits of runs that were stepped by hand, one setting at a time."""
    task = Parrot()
    sweep = Sweep("tiny", ("parrot",), ("full",), chunk=32, question=question)
    settings = [FULL] + [
        Variant(find_method(name, options), "keep", 0.5, evict)
        for name, options in (("snapkv", {"window": 8}), ("h2o", None))
        for evict in ("post", "chunk")
    ]
    found = Agreement(engine(), sweep, task, 7)(settings, 1)
    assert (found[0].score, found[0].footprint) == (1.0, 1.0)
    assert found[0].kl == pytest.approx(0, abs=1e-5)
    example = task.sample(1, 0, 0, len)  # type: ignore[arg-type]
    tokenizer = engine().tokenizer
    prompt, after = tokenizer(example.document)["input_ids"], tokenizer(f"\n\n{example.question}")["input_ids"]
    if question == "before":
        prompt, after = prompt + after, []

    def logits(v: Variant, said: list[int]) -> tuple[list[int], torch.Tensor]:
        """Stepped along `said`, or greedily where it is empty."""
        from kvfoot.engine.sampler import Sampling
        from kvfoot.engine.span import Span

        plan = engine().plan(v.method, v.budget, len(prompt), 32, 24)
        runner = engine().runner([plan], 24)
        sequence = runner.open(prompt, v.method, plan, Sampling(), 0)
        rows, out = [runner.prefill(sequence)], list(said)
        if after:
            rows = [runner.feed(sequence, after, 32)]
        for i in range(6):
            if not said:
                out.append(int(rows[-1].argmax()))
            rows.append(runner.step([Span(sequence, 0, 1, sequence.later)]).forward(runner.model, [out[i]])[0])
        return out + ([] if said else [int(rows[-1].argmax())]), torch.stack(rows).log_softmax(1)

    said, p = logits(FULL, [])
    for v, verdict in zip(settings, found, strict=True):
        _, q = logits(v, said)
        assert verdict.score == sum(x == y for x, y in zip(q.argmax(1).tolist(), said, strict=True)) / 7
        assert verdict.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), abs=1e-5)
    assert len({verdict.kl for verdict in found}) >= 4


def test_answers_are_scored_by_the_task() -> None:
    task = Parrot(wrong=(1,))
    sweep = Sweep("tiny", ("parrot",), ("full",), chunk=32)
    judge = Answers(engine(), sweep, task)
    small = Variant(find_method("streaming"), "keep", 0.1, "post")
    assert [v.score for v in judge([FULL, small], 0)] == [1.0, 0.0]
    assert [v.score for v in judge([FULL, small], 1)] == [0.0, 0.0]


def test_a_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    one = Settings("snapkv", {"window": 8}, keep=0.3, evict="chunk", chunk=None, found={"target": 0.9})
    one.save(path)
    assert Settings.read(path) == one
    for text, word in (("{", "not JSON"), ("[]", "no settings file"), ('{"keep": 1}', "no settings file")):
        path.write_text(text)
        with pytest.raises(UsageError, match=word):
            Settings.read(path)
    path.write_text(json.dumps({"kvfoot_settings": 2}))
    with pytest.raises(UsageError, match="schema 2"):
        Settings.read(path)
    path.write_text(json.dumps({"kvfoot_settings": 1, "kep": 0.2}))
    with pytest.raises(UsageError, match="unknown field 'kep'"):
        Settings.read(path)
    with pytest.raises(UsageError, match="No such file"):
        Settings.read(tmp_path / "nowhere")
