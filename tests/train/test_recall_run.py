"""Tiny runs on a CPU: they learn, they resume to the bit, and they refuse what cannot work."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from taskdata import write

from kvfoot.core.errors import UsageError
from kvfoot.train.recall.loop import Trainer, train_recall
from kvfoot.train.recall.options import ModelShape, RecallOptions, Recipe
from kvfoot.train.recall.plan import Plan
from kvfoot.train.recall.vocab import BOS, HIDDEN
from kvfoot.train.recall.writer import ANSWER, BOOK, FILLER, FORK

SHAPE = ModelShape(vocabulary=512, layers=2, width=64, heads=4, kv_heads=2, head_dim=16, mlp=128, positions=512)
RECIPE = Recipe(plan="tiny", minutes=0.0015, batch=2048, parts=2, warm=4)


def options(data, out, **changes):
    given = {"recipe": RECIPE, "shape": SHAPE, "device": "cpu", "workers": 0, "yes": True, "kill_after": 0.0}
    return RecallOptions(data, out, **{**given, "log_every": 5, **changes})


def quiet(text):
    return None


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, train_recall(options(data, out), quiet)


def test_a_tiny_run_learns_and_leaves_a_model(whole):
    out, record = whole
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert {"filler", "book", "answer", "fork"} < log[0].keys()
    assert record["finished"]
    assert record["step"] == record["steps"] > 25
    assert losses[0] > 5.5
    assert losses[-1] < losses[0] - 1.0
    assert (out / "config.json").is_file()
    assert sorted(path.name for path in out.glob("*.safetensors")) == [
        "model-00001-of-00001.safetensors",
        "state.safetensors",
    ]


def test_a_run_in_two_pieces_is_the_same_run(whole, data, tmp_path):
    """Cut in the middle, resumed by another number of workers: every weight and momentum to the bit."""
    first = train_recall(options(data, tmp_path, stop_step=11), quiet)
    assert (first["finished"], first["step"]) == (False, 11)
    second = train_recall(options(data, tmp_path, resume=True, workers=1), quiet)
    assert (second["finished"], second["first"]) == (True, 11)
    a, b = (load_file(folder / "state.safetensors") for folder in (whole[0], tmp_path))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_running_text_is_hidden_anew_every_step_and_nothing_else_is(data, tmp_path):
    given = options(data, tmp_path)
    trainer = Trainer(given, Plan(RECIPE), torch.device("cpu"))
    codes = torch.arange(5).repeat(4, 400)  # silent, filler, book, answer, fork in turn
    tokens = torch.full(codes.shape, 77)
    tokens[:, :5] = BOS
    read, later = trainer._noisy(3, tokens, codes), trainer._noisy(4, tokens, codes)
    hidden = read == HIDDEN
    text = (codes == FILLER) | (codes == BOOK)
    assert 0.08 < hidden[text].float().mean() < 0.12
    assert not hidden[~text].any()
    assert not hidden[:, :5].any()
    assert torch.equal(read, trainer._noisy(3, tokens, codes))
    assert not torch.equal(read, later)
    # running text counts more at first than later, answers always the same
    first, last = (trainer.weights[trainer.plan.phases[phase].text] for phase in (0, -1))
    assert (first / last).tolist()[1:] == [4.0, 4.0, 1.0, 1.0]
    assert first[FORK] > first[ANSWER]


def test_a_run_may_begin_with_the_weights_of_another(whole, data, tmp_path):
    train_recall(options(data, tmp_path, start_from=whole[0], stop_step=5), quiet)
    entry = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert entry["loss"] < 5.6
    wider = replace(SHAPE, mlp=64)
    with pytest.raises(UsageError, match="has another shape"):
        train_recall(options(data, tmp_path, start_from=whole[0], shape=wider), quiet)


def test_resume_refuses_another_shape_another_recipe_and_nothing(whole, data, tmp_path):
    with pytest.raises(UsageError, match=r"of another shape: layers 2 \(asked for 3\)"):
        train_recall(options(data, whole[0], resume=True, shape=replace(SHAPE, layers=3)), quiet)
    with pytest.raises(UsageError, match=r"of another recipe: seed 0 \(asked for 5\)"):
        train_recall(options(data, whole[0], resume=True, recipe=replace(RECIPE, seed=5)), quiet)
    with pytest.raises(UsageError, match="nothing to resume"):
        train_recall(options(data, tmp_path, resume=True), quiet)


def test_a_missing_and_a_small_data_folder(tmp_path):
    with pytest.raises(UsageError, match="has no"):
        train_recall(options(tmp_path / "no", tmp_path / "out"), quiet)
    small = write(tmp_path / "small", characters=3000)
    with pytest.raises(UsageError, match=r"too small: 6,\d+ characters of training books; plan 'tiny' needs 40,960"):
        train_recall(options(small, tmp_path / "out"), quiet)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_estimates_and_asks(data, tmp_path):
    with pytest.raises(UsageError, match="hours on this CPU; pass --yes to go on"):
        train_recall(options(data, tmp_path, device=None, yes=False), quiet)
    with pytest.raises(UsageError, match="no GPU is visible"):
        train_recall(options(data, tmp_path, device="cuda"), quiet)


def test_a_recipe_that_does_not_retrieve_is_killed(data, tmp_path):
    record = train_recall(options(data, tmp_path, probe_every=0.001, kill_after=0.001), quiet)
    assert record["killed"]
    assert not record["finished"]
