"""Hard-concrete gates against closed forms and finite differences; schedules; the Lagrangian."""

import math

import pytest
import torch

from kvfoot.train.gates import (
    TAU,
    HardConcrete,
    Schedule,
    gate,
    optimizer,
    shut,
    uniform,
    wide_open,
)

# specs of 2506.17121, section 3.1: log alpha, P(z = 0), P(z = 1), E z, sigmoid(1.2 log alpha)
TABLE = [
    (-4, 0.917, 0.004, 0.024, 0.008),
    (-1, 0.355, 0.069, 0.293, 0.231),
    (0, 0.168, 0.168, 0.500, 0.500),
    (2, 0.027, 0.599, 0.857, 0.917),
    (4, 0.004, 0.917, 0.976, 0.992),
]


@pytest.mark.parametrize(("log_alpha", "zero", "one", "mean", "soft"), TABLE)
def test_the_table_of_the_specification(log_alpha: int, zero: float, one: float, mean: float, soft: float) -> None:
    alpha = torch.tensor(float(log_alpha))
    assert shut(alpha).item() == pytest.approx(zero, abs=6e-4)
    assert wide_open(alpha).item() == pytest.approx(one, abs=6e-4)
    assert torch.sigmoid(1.2 * alpha).item() == pytest.approx(soft, abs=6e-4)
    z = gate((torch.arange(200_000) + 0.5) / 200_000, alpha)  # a quantile grid, not a sample
    assert z.mean().item() == pytest.approx(mean, abs=1.5e-3)
    assert (z == 0).float().mean().item() == pytest.approx(shut(alpha).item(), abs=1e-4)
    assert (z == 1).float().mean().item() == pytest.approx(wide_open(alpha).item(), abs=1e-4)


def test_the_expectation_agrees_with_sampling() -> None:
    alpha = torch.linspace(-6, 6, 25)
    draws = torch.stack([gate(uniform((25,), 3, i), alpha) for i in range(4000)])
    share, expected = (draws == 0).float().mean(0), shut(alpha)
    error = (expected * (1 - expected) / 4000).sqrt().clamp(min=1e-3)
    assert ((share - expected).abs() / error).max() < 4.5


def test_gradients_against_finite_differences() -> None:
    u, alpha = uniform((64,), 1, 2).double(), torch.linspace(-3, 3, 64).double().requires_grad_()
    gate(u, alpha).sum().backward()
    h = 1e-6
    measured = (gate(u, alpha.detach() + h) - gate(u, alpha.detach() - h)) / (2 * h)
    assert alpha.grad is not None
    assert (alpha.grad - measured).abs().max() < 1e-6
    assert (alpha.grad > 0).any()
    at = gate(u, alpha.detach())
    assert (alpha.grad[(at == 0) | (at == 1)] == 0).all(), "a gate that is clamped takes no gradient from the loss"


def test_the_penalty_and_its_gradients() -> None:
    gates = HardConcrete(3, 4, seed=1)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-2, 2, 12).view(3, 4))
        gates.multipliers.copy_(torch.tensor([0.7, 3.0]))
    s = gates.sparsity()
    assert s.item() == pytest.approx(torch.sigmoid(-gates.log_alpha.detach() + TAU * math.log(1 / 11)).mean().item())
    gates.penalty(s, 0.4).backward()
    gap = s.item() - 0.4
    assert gates.multipliers.grad is not None
    assert gates.multipliers.grad.tolist() == pytest.approx([gap, gap**2], rel=1e-5)
    p = shut(gates.log_alpha.detach())
    expected = (0.7 + 2 * 3.0 * gap) * -(p * (1 - p)) / 12
    assert gates.log_alpha.grad is not None
    assert (gates.log_alpha.grad - expected).abs().max() < 1e-7


def test_gates_descend_and_multipliers_ascend_with_the_decay_of_the_recipe() -> None:
    """One step of AdamW at rate 1 moves by the gradient's sign, after a decay by a tenth (trap 10)."""
    gates = HardConcrete(1, 2)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([[4.0, -2.0]]))
        gates.multipliers.copy_(torch.tensor([1.0, 2.0]))
    gates.log_alpha.grad, gates.multipliers.grad = torch.tensor([[0.3, -0.2]]), torch.tensor([-0.1, 0.5])
    optimizer(gates).step()
    assert gates.log_alpha.tolist()[0] == pytest.approx([0.9 * 4 - 1, 0.9 * -2 + 1], abs=1e-5)
    assert gates.multipliers.tolist() == pytest.approx([0.9 * 1 - 1, 0.9 * 2 + 1], abs=1e-5)


def test_untouched_gates_fall_as_computed() -> None:
    """specs 3.1: with no gradient log alpha falls from 4 to 0.02 over the 100 steps of warm-up."""
    schedule, value = Schedule(1000, 0.7), 4.0
    for step in range(100):
        value *= 1 - 0.1 * schedule.rate(step)
    assert value == pytest.approx(0.02, abs=0.01)


def test_the_published_schedules() -> None:
    schedule = Schedule(1000, 0.7)
    rates = [schedule.rate(step) for step in (0, 50, 100, 400, 800, 999)]
    assert rates == pytest.approx([0, 0.5, 1.0, 0.7525, 0.1258, 0.01], abs=1e-3)
    assert [schedule.sparsity(step) for step in (0, 400, 800, 999)] == pytest.approx([0, 0.35, 0.7, 0.7])
    logarithmic = Schedule(1000, 0.7, logarithmic=True)
    assert logarithmic.sparsity(400) == pytest.approx(1 - math.sqrt(0.3))
    assert logarithmic.sparsity(800) == 0.7


def test_undecided_gates() -> None:
    """From the table: at log alpha 0 two thirds, at 4 and -4 some 8 %."""
    gates = HardConcrete(1, 3)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([[0.0, 4.0, -4.0]]))
    expected = [1 - zero - one for at, zero, one, *_ in TABLE if at in (0, 4, -4)]
    assert gates.undecided() == pytest.approx(sum(expected) / 3, abs=1e-3)


def test_draws_are_a_function_of_seed_step_and_row() -> None:
    assert torch.equal(uniform((50,), 1, 2, 3), uniform((50,), 1, 2, 3))
    others = [uniform((50,), 1, 2, 4), uniform((50,), 1, 3, 3), uniform((50,), 2, 2, 3), uniform((50,), 1, 3, 2)]
    assert all((uniform((50,), 1, 2, 3) - other).abs().max() > 0.1 for other in others)
    many = torch.cat([uniform((1000,), 0, i) for i in range(50)])
    assert 0 < many.min() < many.max() < 1
    assert many.mean().item() == pytest.approx(0.5, abs=0.01)
