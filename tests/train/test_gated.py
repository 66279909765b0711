"""Write gates in the attention, labels of retaining heads: against their definitions, forwards and backwards."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from kvfoot.core.errors import UsageError
from kvfoot.train import gated as module
from kvfoot.train.gated import Turned, gated
from kvfoot.train.locret import Locret, LocretOptions, asked, labels
from kvfoot.train.mixed import Near, full, streaming
from kvfoot.train.packing import Row
from kvfoot.train.passes import frozen, hidden
from kvfoot.train.scores import trapezoid
from kvfoot.train.wgkv import WGKV, WGKVOptions, closing, held_anyway
from kvfoot.train.world import World

ONE = World(0, 1)


def inputs(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    q, k, v = (
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((1, 2, 3, n, 8), (1, 2, n, 8), (1, 2, n, 8))
    )
    log = torch.rand(1, 2, n, generator=generator, dtype=dtype).log().requires_grad_()
    return q, k, v, log


def by_loops(q: Tensor, k: Tensor, v: Tensor, scale: float, log: Tensor, window: int) -> Tensor:
    rows = []
    for i in range(q.shape[3]):
        logits = [
            (q[:, :, :, i] * k[:, :, None, j]).sum(-1) * scale + (log[:, :, None, j] if i >= j + window else 0.0)
            for j in range(i + 1)
        ]
        weights = torch.stack(logits, -1).softmax(-1)
        rows.append(sum(weights[..., j, None] * v[:, :, None, j] for j in range(i + 1)))
    return torch.stack(rows, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "window", "block"), [(9, 4, 512), (23, 4, 7), (23, 1, 8), (30, 40, 7), (24, 12, 12)])
def test_gates_join_the_logits_of_queries_beyond_the_window(
    n: int, window: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    q, k, v, log = inputs(n)
    mine, theirs = gated(q, k, v, 0.4, log, window), by_loops(q, k, v, 0.4, log, window)
    torch.testing.assert_close(mine, theirs)
    grad, every = torch.randn_like(mine), (q, k, v, log)
    found, wanted = (torch.autograd.grad(out, every, grad, allow_unused=True) for out in (mine, theirs))
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None), "inside the window there is no gate to learn"
        if a is not None:
            torch.testing.assert_close(a, b)


def test_open_gates_are_full_attention_and_shut_ones_a_sliding_window() -> None:
    q, k, v, log = inputs(40)
    with torch.no_grad():
        torch.testing.assert_close(gated(q, k, v, 0.4, torch.zeros_like(log), 8), full(q, k, v, 0.4))
        shut = gated(q, k, v, 0.4, torch.full_like(log, -1e4), 8)
        torch.testing.assert_close(shut, streaming(q, k, v, 0.4, Near(0, 8)))


def test_a_gate_s_gradient_against_finite_differences() -> None:
    q, k, v, log = inputs(20)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value = lambda x: (gated(q, k, v, 0.4, x, 5) * weight).sum()  # noqa: E731
    (grad,) = torch.autograd.grad(value(log), log)
    for at in ((0, 0, 0), (0, 1, 7), (0, 0, 14), (0, 1, 15)):
        step = torch.zeros_like(log)
        step[at] = 1e-5
        with torch.no_grad():
            measured = (value(log + step) - value(log - step)) / 2e-5
        assert grad[at].item() == pytest.approx(measured.item(), abs=1e-6)
    assert grad[0, :, 15:].abs().max() == 0, "never further back than the window"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "smollm3"])
def test_rotation_in_the_attention_is_the_model_s(kind: str) -> None:
    """Full attention with position 0 given to the model; packed rows with positions that start again too."""
    model = tiny.make(kind, layers=4 if kind == "smollm3" else 2)
    tokens = torch.tensor(tiny.tokens(30, 1) + tiny.tokens(21, 2))
    turned = Turned(model)
    with torch.no_grad(), frozen(model, checkpointing=False):
        plain = model.base_model(input_ids=tokens[None]).last_hidden_state[0]
        alone = model.base_model(input_ids=tokens[None, 30:]).last_hidden_state[0]
        with turned.attached(model):
            mine = hidden(model, turned, Row(tokens, ((0, 51),)), None, restart=False)
            packed = hidden(model, turned, Row(tokens, ((0, 30), (30, 51))), None, restart=True)
    torch.testing.assert_close(mine, plain, atol=2e-5, rtol=0)
    torch.testing.assert_close(packed[30:], alone, atol=2e-5, rtol=0)


def rows(count: int = 2) -> list[Row]:
    made = []
    for i in range(count):
        counted = torch.zeros(40, dtype=torch.bool)
        counted[[14, 33, 36 + i]] = True
        made.append(Row(torch.tensor(tiny.tokens(40, i)), ((0, 16), (16, 40)), counted))
    return made


def test_the_loss_of_write_gates_is_the_formula() -> None:
    model = tiny.make("llama")
    trainer = WGKV(model, WGKVOptions(steps=4, window=6, weight=0.3), ONE)
    with trainer.running(False), trainer.mixed.attached(model):
        numbers = trainer.step(0, rows())
    again = WGKV(model, trainer.options, ONE)
    distances, terms = [], []
    with torch.no_grad(), again.running(False), again.mixed.attached(model):
        for row in rows():
            again.mixed.layers = None
            wanted = hidden(model, again.mixed, row, None, restart=False)
            again.mixed.layers, again.mixed.found = again.layers, {}
            found = hidden(model, again.mixed, row, None, restart=False)
            distances.append((found - wanted).square())
            for layer in range(2):
                for head in range(2):
                    for a, b in row.spans:
                        for s in range(a, b):
                            o = min(1.0, 6 / (b - s))
                            g = float(again.mixed.found[layer][head, s])
                            terms.append(o + (1 - o) * (1 - (1 - g) ** 2))
    mse, mean = torch.stack(distances).mean().item(), sum(terms) / len(terms)
    assert numbers["distance"] == pytest.approx(mse, rel=1e-4)
    assert numbers["closing"] == pytest.approx(mean, rel=1e-5)
    assert numbers["loss"] == pytest.approx(mse + 0.3 * mean, rel=1e-4)
    assert numbers["rate"] == pytest.approx(1e-3)


def test_the_closing_term() -> None:
    held = held_anyway(((0, 10), (10, 14)), 4)
    assert held.tolist() == pytest.approx([4 / n for n in (10, 9, 8, 7, 6, 5)] + [1.0] * 8)
    g = torch.tensor([0.0, 0.5, 1.0])
    assert closing(g, torch.zeros(3)).tolist() == [0.0, 0.75, 1.0]
    assert closing(g, torch.full((3,), 0.25)).tolist() == [0.25, 0.25 + 0.75 * 0.75, 1.0]
    assert (closing(g, torch.ones(3)) == 1).all(), "a token of the last window costs the same whatever its gate"


def test_checkpointed_layers_have_the_same_gradients() -> None:
    """The closing term leaves the layers beside their output."""
    grads = []
    for checkpointing in (False, True):
        model = tiny.make("llama")
        trainer = WGKV(model, WGKVOptions(steps=4, window=6), ONE)
        with trainer.running(checkpointing), trainer.mixed.attached(model):
            trainer.step(0, rows(1))
        grads.append([p.grad for p in trainer.parameters])
    assert all(g is not None and g.abs().max() > 0 for g in grads[0])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-4)


def test_labels_are_the_greatest_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(shape, generator=generator) for shape in ((2, 3, 70, 8), (2, 11, 8)))
    found = labels(q, k, 0.25)
    for g in range(2):
        for j in range(11):
            each = [float(q[g, h, i] @ k[g, j]) * 0.25 for h in range(3) for i in range(70)]
            assert found[g, j].item() == pytest.approx(max(each), abs=1e-5)


def test_what_is_asked_about_is_the_document_s_text_before_it() -> None:
    row = rows(1)[0]
    assert [(a, first, places.tolist()) for a, first, places in asked(row)] == [(0, 14, [14]), (16, 33, [33, 36])]
    with pytest.raises(UsageError, match="Locret needs rows that say which tokens ask and answer"):
        asked(Row(row.tokens, row.spans))


class Half(World):
    """One of two processes, whose sums stay its own."""

    def sum_(self, *tensors: Tensor) -> None:
        return None


def test_the_loss_of_retaining_heads_is_the_formula() -> None:
    model = tiny.make("llama")
    options = LocretOptions(steps=4, width=32, smooth=0.5)
    trainer = Locret(model, options, ONE)
    again = Locret(model, options, ONE)
    with trainer.running(False), trainer.mixed.attached(model):
        numbers = trainer.step(0, rows())
    near, steps = [], []
    seen: list[tuple[Any, ...]] = []
    turned = again.mixed.turned
    again.mixed.turned = lambda *a: (seen.append(a), turned(*a))[1]  # type: ignore[method-assign, func-returns-value]
    with torch.no_grad(), again.running(False), again.mixed.attached(model):
        for row in rows():
            seen.clear()
            again.mixed.layers = None
            hidden(model, again.mixed, row, None, restart=False)
            for layer, query, key, q, k, value, scale in seen:
                for a, first, places in asked(row):
                    x = torch.cat([query[0, :, a:first].transpose(0, 1).flatten(1)] + [
                        y[0, :, a:first].transpose(0, 1).flatten(1) for y in (key, value)
                    ], 1)  # fmt: skip
                    w = again.layers[layer]
                    score = (torch.nn.functional.silu(x @ w["up"].T) @ w["down"].T).T
                    for g in range(2):
                        logits = torch.einsum("hqd,nd->hqn", q[0, 3 * g : 3 * g + 3, places], k[0, g, a:first]) * scale
                        wanted = logits.amax((0, 1))
                        for e in (score[g] - wanted).abs().tolist():
                            near.append(0.5 * e * e if e < 1 else e - 0.5)
                        steps += (score[g, 1:] - score[g, :-1]).square().tolist()
    assert numbers["distance"] == pytest.approx(sum(near) / len(near), rel=1e-4)
    assert numbers["roughness"] == pytest.approx(sum(steps) / len(steps), rel=1e-4)
    assert numbers["loss"] == pytest.approx(numbers["distance"] + 0.5 * numbers["roughness"])


@pytest.mark.parametrize("make", [
    lambda model, world: WGKV(model, WGKVOptions(steps=4, window=6), world),
    lambda model, world: Locret(model, LocretOptions(steps=4, width=32), world),
])  # fmt: skip
def test_gradients_of_two_processes_add_up_and_agree_with_finite_differences(make: Any) -> None:
    model = tiny.make("llama")
    found = []
    for world in (ONE, Half(0, 2), Half(1, 2)):
        trainer = make(model, world)
        with trainer.running(False), trainer.mixed.attached(model):
            loss = trainer.step(0, rows(3))["loss"]
        found.append((loss, [p.grad.clone() for p in trainer.parameters]))
    whole, *halves = found
    assert sum(loss for loss, _ in halves) == pytest.approx(whole[0], rel=1e-5)
    for one, a, b in zip(whole[1], *(grads for _, grads in halves), strict=True):
        torch.testing.assert_close(a + b, one, atol=1e-6, rtol=1e-4)
    at = make(model, ONE)
    grads = whole[1]
    for index in (0, len(grads) // 2, len(grads) - 1):
        direction = grads[index] / grads[index].norm()
        values = []
        for sign in (1, -1):
            moved = make(model, ONE)
            with torch.no_grad():
                moved.parameters[index].add_(sign * 0.02 * direction)
            with moved.running(False), moved.mixed.attached(model):
                values.append(moved.step(0, rows(3))["loss"])
        slope = (values[0] - values[1]) / 0.04
        assert slope == pytest.approx(grads[index].norm().item(), rel=0.03), [p.shape for p in at.parameters][index]


def test_rates() -> None:
    """WG-KV: a tenth up, the rest down. Locret: 2000 of 3000 steps up."""
    wgkv = [trapezoid(step, 2000, 0.1, 0.9) for step in (0, 99, 199, 200, 1100, 1999)]
    assert wgkv == pytest.approx([1 / 200, 0.5, 1.0, 1.0, 0.5, 1 / 1800])
    locret = [trapezoid(step, 3000, 2 / 3, 1 / 3) for step in (0, 999, 1999, 2500, 2999)]
    assert locret == pytest.approx([1 / 2000, 0.5, 1.0, 0.5, 1 / 1000])
    assert trapezoid(0, 1, 0.1, 0.9) == 1.0


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: WGKVOptions(steps=0), "--steps 0"),
        (lambda: WGKVOptions(window=0), "window=0: give at least 1"),
        (lambda: WGKVOptions(weight=-1.0), "not negative"),
        (lambda: WGKVOptions(least=0.0), r"in \(0, 1\)"),
        (lambda: WGKVOptions(fall=2.0), "shares of the steps"),
        (lambda: LocretOptions(width=0), "width=0: give at least 1"),
        (lambda: LocretOptions(smooth=-0.1), "not negative"),
        (lambda: LocretOptions(warm=1.5), "shares of the steps"),
    ],
)
def test_bad_recipes(make: Any, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        make()


def test_rows_without_text_before_their_questions() -> None:
    model = tiny.make("llama")
    trainer = Locret(model, LocretOptions(steps=2, width=8), ONE)
    counted = torch.zeros(10, dtype=torch.bool)
    counted[0] = True
    with pytest.raises(UsageError, match="no text of the batch is asked about"):
        trainer.step(0, [Row(torch.tensor(tiny.tokens(10)), ((0, 10),), counted)])


def test_gates_stay_above_the_least() -> None:
    model = tiny.make("llama")
    trainer = WGKV(model, WGKVOptions(steps=2, window=4), ONE)
    with torch.no_grad():
        for layer in trainer.layers:
            layer["down_bias"].fill_(-50)
    with trainer.running(False), trainer.mixed.attached(model):
        numbers = trainer.step(0, rows(1))
    assert all(math.isfinite(x) for x in numbers.values())
    assert min(g.min().item() for g in trainer.mixed.found.values()) == pytest.approx(1e-3)
