"""PruLong: which heads need the whole context, learned from the next token (arXiv 2506.17121, section 5, appendix B).

Hard-concrete gates per KV head in mixed attention, weights frozen, cross-entropy plus a Lagrangian that drives the
share of closed gates to a target. One run per target sparsity.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.core.roles import HeadGates, check_sparsity
from kvfoot.train.gates import HardConcrete, Schedule, optimizer
from kvfoot.train.heads import OfHeads
from kvfoot.train.mixed import Mixed, Near
from kvfoot.train.packing import Row
from kvfoot.train.passes import hidden, nll
from kvfoot.train.state import load_optimizer, optimizer_tensors
from kvfoot.train.world import World

Measure = Literal["expected", "sampled"]


@dataclass(frozen=True)
class PruLongOptions:
    """sparsity: the target. measure: expected L0, or as released the mean of the step's draws (256 Bernoulli-like
    ones). linear False: lambda 1 stays 0. restart: positions from 0 in every document, not running on over the row.
    """

    sparsity: float = 0.7
    steps: int = 1000
    seed: int = 0
    sink: int = 128
    window: int = 1024
    blocks: bool = False
    measure: Measure = "expected"
    linear: bool = True
    restart: bool = False
    rate: float = 1.0
    decay: float = 0.1
    clip: float = 1.0
    warm: float = 0.1
    target_warm: float = 0.8
    target_start: float = 0.0
    logarithmic: bool = False

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        check_sparsity(self.target_start)
        if self.steps < 1:
            raise UsageError(f"--steps {self.steps}: give at least 1")
        if not 0 < self.warm < 1 or not 0 < self.target_warm <= 1:
            raise UsageError(f"warm={self.warm:g}, target_warm={self.target_warm:g} are shares of the steps")


class PruLong(OfHeads):
    """The trainer: `step` is one update from a batch of rows."""

    name = "prulong"
    paper = "2506.17121"

    def __init__(self, model: Any, shape: tuple[int, int], options: PruLongOptions, world: World):
        self.model, self.options, self.world = model, options, world
        self.mixed = Mixed(Near(options.sink, options.window, options.blocks))
        self.gates = HardConcrete(*shape, seed=options.seed).to(model.device)
        self.optimizer = optimizer(self.gates, options.rate, options.decay)
        self.schedule = Schedule(
            options.steps,
            options.sparsity,
            options.warm,
            target_warm=options.target_warm,
            target_start=options.target_start,
            logarithmic=options.logarithmic,
        )

    def step(self, step: int, rows: list[Row]) -> dict[str, float]:
        """rows: the whole batch, of which this process computes its share. The numbers are the whole batch's."""
        self.optimizer.zero_grad(set_to_none=False)
        loss = self._likelihood(step, rows)
        measured, target = self._constrain(step, len(rows))
        parameters = [self.gates.log_alpha, self.gates.multipliers]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.options.clip)
        rate = self.options.rate * self.schedule.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        one, two = self.gates.multipliers.tolist()
        numbers = {"loss": float(loss), "sparsity": float(measured), "target": target, "lambda1": one, "lambda2": two}
        return numbers | {"undecided": self.gates.undecided(), "rate": rate, "norm": float(norm)}

    def _likelihood(self, step: int, rows: list[Row]) -> Tensor:
        """Mean nll over the batch's targets; its gradient to the gates, added up over processes."""
        targets = [row.targets() for row in rows]
        count = sum(int((t >= 0).sum()) for t in targets)
        if not count:
            raise UsageError("no token of the batch has a next one in its document: give longer documents")
        total = torch.zeros((), device=self.model.device)
        for i in self.world.mine(len(rows)):
            z = self.gates.draw(self.options.seed, step, i)
            states = hidden(self.model, self.mixed, rows[i], z, restart=self.options.restart)
            loss = nll(self.model, states, targets[i]) / count
            loss.backward()
            total += loss.detach()
        alpha = self.gates.log_alpha
        if alpha.grad is None:
            alpha.grad = torch.zeros_like(alpha)
        self.world.sum_(alpha.grad, total)
        return total

    def _constrain(self, step: int, count: int) -> tuple[Tensor, float]:
        """The penalty's gradient, from parameters alone: equal in every process, no collective (trap 12)."""
        target, gates = self.schedule.sparsity(step), self.gates
        if self.options.measure == "expected":
            measured = gates.sparsity()
            gates.penalty(measured, target).backward()
        else:
            draws = [1 - gates.draw(self.options.seed, step, i).mean() for i in range(count)]
            measured = torch.stack(draws).mean()
            torch.stack([gates.penalty(s, target) for s in draws]).mean().backward()
        if not self.options.linear and gates.multipliers.grad is not None:
            gates.multipliers.grad[0] = 0
        return measured.detach(), target

    def heads(self) -> HeadGates:
        """The gates as they are, for the target sparsity; rounding is by log alpha over all layers."""
        o = self.options
        sink = self.mixed.near.sinks
        return HeadGates(self.gates.log_alpha.detach().cpu().numpy(), "log_alpha", o.sparsity, "top", sink, o.window)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.gates.state_dict()) | optimizer_tensors(self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.gates.load_state_dict({name: tensors[name] for name in self.gates.state_dict()})
        load_optimizer(self.optimizer, tensors)

    def described(self) -> dict[str, Any]:
        return asdict(self.options)
