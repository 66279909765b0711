"""DuoAttention: which heads need the whole context, learned from passkeys (arXiv 2410.10819, section 2).

One gate in [0, 1] per KV head in mixed attention, weights frozen; the last hidden states of the mixed pass are pulled
to those of a pass with full attention at the tokens that repeat passkeys, and an L1 term closes the gates.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kvfoot.core.errors import UsageError
from kvfoot.core.roles import HeadGates
from kvfoot.train.heads import OfHeads
from kvfoot.train.mixed import Mixed, Near
from kvfoot.train.packing import Row
from kvfoot.train.passes import hidden
from kvfoot.train.state import load_optimizer, optimizer_tensors
from kvfoot.train.world import World

Norm = Literal["mean", "sum"]


@dataclass(frozen=True)
class DuoOptions:
    """weight: of the L1 term, a mean over heads as released; norm "sum" is the paper's formula, hundreds of times
    stronger (trap 17). teacher_branch: the mixed stream's full branch is the teacher's attention output, without
    gradient, as released. edge: share of the steps over which the rate rises from `floor`, and falls back to it.
    """

    steps: int = 2000
    seed: int = 0
    sink: int = 128
    window: int = 256
    blocks: bool = False
    weight: float = 0.05
    norm: Norm = "mean"
    teacher_branch: bool = False
    restart: bool = False
    rate: float = 0.02
    edge: float = 0.2
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"--steps {self.steps}: give at least 1")
        if self.weight < 0:
            raise UsageError(f"weight={self.weight:g}: the L1 term has a weight of 0 or more")
        if not 0 <= self.edge <= 0.5:
            raise UsageError(f"edge={self.edge:g} is a share of the steps, at most one half")

    def scale(self, step: int) -> float:
        """Of the rate: floor to 1 over the first `edge` of the steps, back over the last."""
        width = self.edge * self.steps
        near = min(step, self.steps - 1 - step)
        return 1.0 if near >= width else self.floor + (1 - self.floor) * near / width


class Duo(OfHeads):
    """The trainer: `step` is one update from a batch of rows whose `supervised` tokens repeat passkeys."""

    name = "duo"
    paper = "2410.10819"

    def __init__(self, model: Any, shape: tuple[int, int], options: DuoOptions, world: World):
        self.model, self.options, self.world = model, options, world
        self.mixed = Mixed(Near(options.sink, options.window, options.blocks))
        self.alpha = nn.Parameter(torch.ones(shape, device=model.device))  # fp32: bf16 gates stick at 1 (trap 18)
        self.optimizer = torch.optim.AdamW([self.alpha], lr=options.rate, weight_decay=0.0, foreach=False)

    def step(self, step: int, rows: list[Row]) -> dict[str, float]:
        """rows: the whole batch, of which this process computes its share. The numbers are the whole batch's."""
        self.optimizer.zero_grad(set_to_none=False)
        with torch.no_grad():
            self.alpha.clamp_(0, 1)
        if any(row.supervised is None for row in rows):
            raise UsageError("DuoAttention needs rows that say which tokens repeat a passkey")
        count = sum(int(row.supervised.sum()) for row in rows if row.supervised is not None)
        distance = torch.zeros((), device=self.model.device)
        for i in self.world.mine(len(rows)):
            loss = self._distance(rows[i]) / count
            loss.backward()
            distance += loss.detach()
        if self.alpha.grad is None:
            self.alpha.grad = torch.zeros_like(self.alpha)
        self.world.sum_(self.alpha.grad, distance)
        size = self.alpha.abs().mean() if self.options.norm == "mean" else self.alpha.abs().sum()
        (self.options.weight * size).backward()
        rate = self.options.rate * self.options.scale(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        pulled = float(distance)
        whole = pulled + self.options.weight * float(size.detach())
        mean = float(self.alpha.detach().clamp(0, 1).mean())
        return {"loss": whole, "distance": pulled, "sparsity": 1 - mean, "rate": rate}

    def _distance(self, row: Row) -> Tensor:
        """Mean over the width of (full - mixed)^2, summed over supervised tokens."""
        quirk, mixed, restart = self.options.teacher_branch, self.mixed, self.options.restart
        assert row.supervised is not None
        chosen = row.supervised.to(self.model.device)
        mixed.outputs, mixed.given, mixed.keep = [], [], quirk
        with torch.no_grad():
            wanted = hidden(self.model, mixed, row, None, restart=restart)[chosen].float()
        mixed.keep, mixed.given = False, mixed.outputs
        found = hidden(self.model, mixed, row, self.alpha.clamp(0, 1), restart=restart)[chosen].float()
        return (wanted - found).square().mean(-1).sum()

    def heads(self) -> HeadGates:
        """The gates as they are; a sparsity is chosen when they are rounded."""
        o = self.options
        values = self.alpha.detach().clamp(0, 1).cpu().numpy()
        return HeadGates(values, "alpha", None, "quantile", self.mixed.near.sinks, o.window)

    def tensors(self) -> dict[str, Tensor]:
        return {"alpha": self.alpha.detach()} | optimizer_tensors(self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.alpha.copy_(tensors["alpha"])
        load_optimizer(self.optimizer, tensors)

    def described(self) -> dict[str, Any]:
        return asdict(self.options)
