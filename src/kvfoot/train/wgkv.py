"""WG-KV: which tokens are worth keeping beyond the window, learned from full attention (arXiv 2512.17452).

A gate per token and KV head in (0, 1); its logarithm is added to the logits of all queries that are `window` tokens or
more behind. The weights of the model are frozen; its last hidden states under gates are pulled to those without, and a
second term closes gates.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.methods.learn.wgkv import WINDOW, gates, shapes
from kvfoot.models.layout import geometry_of
from kvfoot.train.gated import Turned, gated
from kvfoot.train.packing import Row
from kvfoot.train.passes import hidden
from kvfoot.train.scores import OfScores, initial, trapezoid
from kvfoot.train.world import World


@dataclass(frozen=True)
class WGKVOptions:
    """weight: of the second term, lambda. least: gates are cut there. threshold: what the log counts as admitted.
    rate: of AdamW, up over `warm` of the steps and down to 0 over the last `fall` of them.
    """

    steps: int = 2000
    seed: int = 0
    window: int = WINDOW
    weight: float = 0.04
    least: float = 1e-3
    threshold: float = 0.1
    rate: float = 1e-3
    decay: float = 0.01
    warm: float = 0.1
    fall: float = 0.9
    restart: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"--steps {self.steps}: give at least 1")
        if self.window < 1:
            raise UsageError(f"window={self.window}: give at least 1, the token itself")
        if min(self.weight, self.rate, self.decay) < 0:
            raise UsageError("weight, rate and decay are not negative")
        if not 0 < self.least < 1 or not 0 < self.threshold < 1:
            raise UsageError(f"least={self.least:g}, threshold={self.threshold:g} are gates, in (0, 1)")
        if not 0 <= self.warm <= 1 or not 0 <= self.fall <= 1:
            raise UsageError(f"warm={self.warm:g}, fall={self.fall:g} are shares of the steps")


class Gating(Turned):
    """layers: the networks, or None for full attention. found: gates fp32 [G, T] of the last pass, by layer."""

    def __init__(self, model: Any, window: int, least: float):
        super().__init__(model)
        self.window, self.least = window, least
        self.layers: list[Any] | None = None
        self.found: dict[int, Tensor] = {}

    def turned(
        self, layer: int, query: Tensor, key: Tensor, q: Tensor, k: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        if self.layers is None:
            return super().turned(layer, query, key, q, k, value, scale)
        B, heads, T, D = q.shape
        G = k.shape[1]
        g = torch.sigmoid(gates(self.layers[layer], key[0], k[0])).clamp(min=self.least)
        self.found.setdefault(layer, g)  # a layer that is made again on the way back has had its say
        log, wide = g.log()[None], q.view(B, G, heads // G, T, D)
        parts = [
            gated(wide[:, :, :, a:b], k[:, :, a:b], value[:, :, a:b], scale, log[:, :, a:b], self.window)
            for a, b in self.spans or ((0, T),)
        ]
        return torch.cat(parts, 3).reshape(B, heads, T, D).transpose(1, 2)


def held_anyway(spans: tuple[tuple[int, int], ...], window: int) -> Tensor:
    """o fp32 [T]: min(1, W / (T - s)), the share of its document's rest in which token s is in the window."""
    return torch.cat([(window / torch.arange(b - a, 0, -1)).clamp(max=1.0) for a, b in spans])


def closing(g: Tensor, held: Tensor) -> Tensor:
    """Per token and KV head: o + (1 - o) (1 - (1 - g)^2), which pulls a gate to 0 unless it is kept near 1."""
    return held + (1 - held) * (1 - (1 - g).square())


class WGKV(OfScores):
    """The trainer: `step` is one update from a batch of rows."""

    name = "wgkv"
    paper = "2512.17452"

    def __init__(self, model: Any, options: WGKVOptions, world: World):
        self.options = options
        geometry, generator = geometry_of(model), torch.Generator().manual_seed(options.seed)
        layers = [
            initial(dict(shapes(geometry.kv_heads, geometry.head_dim)), generator) for _ in range(geometry.layers)
        ]
        self.begin(model, world, layers, lr=options.rate, weight_decay=options.decay)  # type: ignore[arg-type]
        self.reached = {"window": options.window}
        self.mixed = Gating(model, options.window, options.least)

    def step(self, step: int, rows: list[Row]) -> dict[str, float]:
        """rows: the whole batch, of which this process computes its share. The numbers are the whole batch's."""
        self.optimizer.zero_grad(set_to_none=False)
        tokens = sum(len(row.tokens) for row in rows)
        sums = torch.zeros(3, device=self.model.device)
        for i in self.world.mine(len(rows)):
            distance, size, admitted = self._losses(rows[i])
            ((distance + self.options.weight * size) / tokens).backward()
            sums += torch.stack([distance.detach(), size.detach(), admitted]) / tokens
        rate = self.options.rate * trapezoid(step, self.options.steps, self.options.warm, self.options.fall)
        self.update(rate, sums)
        distance, size, admitted = sums.tolist()
        loss = distance + self.options.weight * size
        return {"loss": loss, "distance": distance, "closing": size, "admitted": admitted, "rate": rate}

    def _losses(self, row: Row) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the row's tokens: of the squared distance, mean over the width; of `closing`, and of the gates
        above the threshold, mean over layers and KV heads."""
        mixed, restart = self.mixed, self.options.restart
        mixed.layers = None
        with torch.no_grad():
            wanted = hidden(self.model, mixed, row, None, restart=restart).float()
        mixed.layers, mixed.found = self.layers, {}
        states = hidden(self.model, mixed, row, None, restart=restart).float()
        g = torch.stack([mixed.found[layer] for layer in range(len(self.layers))])
        held = held_anyway(row.spans, self.options.window).to(g.device)
        admitted = (g.detach() > self.options.threshold).float().mean((0, 1)).sum()
        return (states - wanted).square().mean(-1).sum(), closing(g, held).mean((0, 1)).sum(), admitted

    def described(self) -> dict[str, Any]:
        return asdict(self.options)
