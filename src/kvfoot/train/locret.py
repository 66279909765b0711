"""Locret: how much a token will be attended to, foretold from its own q, k and v (arXiv 2410.01805, section 3).

A row is a text and, after it, what was asked and answered about it. The label of a token of the text in a KV head is
the greatest scaled logit, before any softmax, that the queries of question and answer have on its key. The model is
frozen and runs full attention; networks learn layer by layer, nothing goes back through the model.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.methods.learn.locret import WIDTH, retaining, shapes
from kvfoot.models.layout import geometry_of
from kvfoot.train.gated import Turned
from kvfoot.train.packing import Row
from kvfoot.train.passes import hidden
from kvfoot.train.scores import OfScores, initial, trapezoid
from kvfoot.train.world import World

QUERIES = 64
"""Queries whose logits exist at once."""


@dataclass(frozen=True)
class LocretOptions:
    """width: units of a network. smooth: weight of the squared steps between neighbours' scores. rate: of AdamW (0.9,
    0.95), up over `warm` of the steps (2000 of 3000), then down to 0 over the last `fall` of them (ours).
    """

    steps: int = 3000
    seed: int = 0
    width: int = WIDTH
    smooth: float = 0.0025
    rate: float = 5e-4
    decay: float = 0.01
    warm: float = 2 / 3
    fall: float = 1 / 3
    restart: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "width"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: give at least 1")
        if min(self.smooth, self.rate, self.decay) < 0:
            raise UsageError("smooth, rate and decay are not negative")
        if not 0 <= self.warm <= 1 or not 0 <= self.fall <= 1:
            raise UsageError(f"warm={self.warm:g}, fall={self.fall:g} are shares of the steps")


def asked(row: Row) -> list[tuple[int, int, Tensor]]:
    """Per document that has supervised tokens: where it begins, where the first of them is, and places of them all."""
    if row.supervised is None:
        raise UsageError("Locret needs rows that say which tokens ask and answer: --rows passkeys or synthesis")
    found = []
    for a, b in row.spans:
        places = row.supervised[a:b].nonzero()[:, 0] + a
        if len(places) and int(places[0]) > a:
            found.append((a, int(places[0]), places))
    return found


def labels(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """fp32 [G, n]: greatest scaled logit of any query q [G, H, Q, D] on each key k [G, n, D]."""
    best = q.new_full(k.shape[:2], -torch.inf, dtype=torch.float32)
    for some in q.float().split(QUERIES, 2):
        logits = torch.einsum("ghqd,gnd->ghqn", some, k.float()) * scale
        best = torch.maximum(best, logits.amax((1, 2)))
    return best


class Retaining(Turned):
    """layers: the networks, which learn while the model runs, or None. weights: of the two terms, per summand.

    losses: fp32 [2], sums of smooth L1 and of squared steps over documents, tokens, layers and KV heads.
    """

    def __init__(self, model: Any):
        super().__init__(model)
        self.layers: list[Any] | None = None
        self.documents: list[tuple[int, int, Tensor]] = []
        self.weights = (0.0, 0.0)
        self.losses = torch.zeros(2, device=model.device)

    def turned(
        self, layer: int, query: Tensor, key: Tensor, q: Tensor, k: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        out = super().turned(layer, query, key, q, k, value, scale)
        if self.layers is None:
            return out
        G = k.shape[1]
        plain, turned = (x[0].unflatten(0, (G, -1)) for x in (query, q))
        for a, first, places in self.documents:
            wanted = labels(turned[:, :, places.to(q.device)], k[0, :, a:first], scale)
            with torch.enable_grad():
                text = slice(a, first)
                found = retaining(self.layers[layer], plain[:, :, text], key[0, :, text], value[0, :, text])
                near = F.smooth_l1_loss(found, wanted, reduction="sum")
                steps = (found[:, 1:] - found[:, :-1]).square().sum()
                (self.weights[0] * near + self.weights[1] * steps).backward()
            self.losses += torch.stack([near, steps]).detach()
        return out


class Locret(OfScores):
    """The trainer: `step` is one update from a batch of rows whose `supervised` tokens ask and answer."""

    name = "locret"
    paper = "2410.01805"

    def __init__(self, model: Any, options: LocretOptions, world: World):
        self.options = options
        geometry, generator = geometry_of(model), torch.Generator().manual_seed(options.seed)
        of = dict(shapes(geometry.kv_heads, geometry.group, geometry.head_dim, options.width))
        layers = [initial(of, generator) for _ in range(geometry.layers)]
        self.begin(model, world, layers, lr=options.rate, betas=(0.9, 0.95), weight_decay=options.decay)  # type: ignore[arg-type]
        self.mixed = Retaining(model)
        self.heads = geometry.rows

    def step(self, step: int, rows: list[Row]) -> dict[str, float]:
        """rows: the whole batch, of which this process computes its share. The numbers are the whole batch's: means
        over tokens of texts, layers and KV heads."""
        self.optimizer.zero_grad(set_to_none=False)
        documents = [asked(row) for row in rows]
        tokens = sum(first - a for each in documents for a, first, _ in each) * self.heads
        pairs = sum(first - a - 1 for each in documents for a, first, _ in each) * self.heads
        if not tokens:
            raise UsageError("no text of the batch is asked about: give rows with supervised tokens after their text")
        mixed = self.mixed
        mixed.layers, mixed.weights = self.layers, (1 / tokens, self.options.smooth / max(pairs, 1))
        mixed.losses = torch.zeros(2, device=self.model.device)
        for i in self.world.mine(len(rows)):
            mixed.documents = documents[i]
            with torch.no_grad():
                hidden(self.model, mixed, rows[i], None, restart=self.options.restart)
        rate = self.options.rate * trapezoid(step, self.options.steps, self.options.warm, self.options.fall)
        self.update(rate, mixed.losses)
        near, steps = mixed.losses.tolist()
        near, steps = near / tokens, steps / max(pairs, 1)
        return {"loss": near + self.options.smooth * steps, "distance": near, "roughness": steps, "rate": rate}

    def described(self) -> dict[str, Any]:
        return asdict(self.options)
