"""RefreshKV's similarity for a model: how alike its queries stay, measured under full attention (arXiv 2411.05787).

The paper gives a threshold for two models; another one's queries are alike to another degree. Along held-out texts the
compared queries of every layer are recorded where the method would look at them, and the method's own rule is replayed
on them for every threshold: a layer refreshes at a check whose cosine with the query of its last refresh is at most
`similarity`, or after `max_gap` steps. The threshold whose share of checks that fire is nearest to the target is taken;
0.4 is the paper's for Llama-3.1-8B, 0.7 for Qwen2-7B.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.core.budget import Budget, split
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method
from kvfoot.core.settings import Settings
from kvfoot.engine.engine import Engine
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.span import Span
from kvfoot.engine.step import Step
from kvfoot.models.bridge import Call
from kvfoot.models.rotation import Rotation

GRID = np.linspace(-1, 1, 401)
"""Thresholds that are tried: steps of 0.005."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Checks:
    """cosines: fp32 [texts, layers, c, c] between the queries of the prompt's end and of the c - 1 checks after it."""

    cosines: np.ndarray
    every: int

    @property
    def steps(self) -> np.ndarray:
        """Cosines at gaps of `every` steps, [layers, texts x (c - 1)]."""
        side = np.diagonal(self.cosines, 1, 2, 3)
        return side.transpose(1, 0, 2).reshape(side.shape[1], -1)

    def shares(self, thresholds: np.ndarray, max_gap: int | None) -> np.ndarray:
        """Share of checks that refresh, [thresholds, layers]: the rule of methods/read/refreshkv.py, replayed."""
        texts, layers, c, _ = self.cosines.shape
        last = np.zeros((len(thresholds), texts, layers), int)
        fired = np.zeros((len(thresholds), layers))
        text, layer = np.ogrid[:texts, :layers]
        for i in range(1, c):
            fires = self.cosines[text, layer, i, last] <= thresholds[:, None, None]
            if max_gap is not None:
                fires |= (i - last + 1) * self.every > max_gap
            last[fires] = i
            fired += fires.sum(1)
        return fired / (texts * (c - 1))


def record(
    engine: Engine,
    texts: Sequence[list[int]],
    *,
    every: int,
    steps: int,
    query: str = "mean",
    prerope: bool = False,
    chunk: int | None = 512,
    say: Callable[[str], None] = lambda line: None,
) -> Checks:
    """texts: token ids, of which the last `steps` stand for what is generated. Raises UsageError for one too short.

    query, prerope: what is compared, as in methods/read/refreshkv.py.
    """
    geometry, found = engine.geometry, []
    rotation = Rotation(engine.model) if prerope else None
    if not geometry.open_layers:
        raise UsageError("every layer of this model has a window of its own: refreshkv has nothing to refresh")
    full = find_method("full")
    for number, tokens in enumerate(texts, 1):
        begin = len(tokens) - steps
        if begin < 1 or steps < every:
            raise UsageError(f"text {number} has {len(tokens)} tokens: {steps} steps need a prompt before them")
        places = [begin - 1 + i for i in range(0, steps + 1, every)]
        plan = engine.plan(full, Budget(), len(tokens), chunk, 1)
        runner = engine.runner([plan], 1)
        sequence = runner.open(tokens, full, plan, Sampling(), 0)
        heard: dict[int, list[Tensor]] = {}
        for a, b in split(len(tokens), chunk, 1):
            own = [p - a for p in places if a <= p < b]
            step = _Listening(runner, [Span(sequence, 0, b - a, None)], own, heard, rotation)
            step.forward(runner.model, tokens[a:b])
        runner.cache.release(sequence.rows)
        found.append(np.stack([_cosines(torch.cat(heard[i]), query) for i in geometry.open_layers]))
        say(f"{number} of {len(texts)} texts")
    return Checks(np.stack(found), every)


def choose(checks: Checks, share: float, max_gap: int | None) -> tuple[float, float]:
    """(threshold, its share of checks that refresh): the nearest to `share`, of equals the lowest."""
    if not 0 < share < 1:
        raise UsageError(f"--share {share:g}: a share of the checks, between 0 and 1 (0.4 and 0.7 in the paper)")
    shares = checks.shares(GRID, max_gap).mean(1)
    best = int(np.abs(shares - share).argmin())
    return round(float(GRID[best]), 3), float(shares[best])


def settings_of(
    engine: Engine, checks: Checks, share: float, options: dict[str, Any], told: dict[str, Any], **more: Any
) -> Settings:
    """The settings file: RefreshKV with the threshold that gives `share`, and what the cosines were like.

    options: of the method, but the similarity. told: about the texts. more: the budget and the chunk.
    """
    method = find_method("refreshkv", options)
    gap = method.options()["max_gap"]
    similarity, reached = choose(checks, share, gap)
    each = checks.shares(np.array([similarity]), gap)[0]
    cosines = checks.steps
    found = told | {
        "share": {"target": share, "reached": round(reached, 4), "layers": _rounded(each)},
        "cosine": {f"{q:g}": round(float(np.quantile(cosines, q)), 4) for q in QUANTILES},
        "cosine_layers": _rounded(np.median(cosines, 1)),
        "checks": int(cosines.shape[1]),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "revision": engine.revision,
    }
    whole = method.options() | {"similarity": similarity}
    model = {"name": engine.name, "identity": engine.geometry.identity}
    return Settings(method="refreshkv", options=whole, found=found, model=model, **more)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in values]


def _cosines(q_cGHD: Tensor, query: str) -> np.ndarray:
    """[c, c] of queries; "kv_head": the least over KV heads, since one that differs is enough."""
    if query == "concat":
        compared = q_cGHD.flatten(1)[:, None]
    else:
        compared = q_cGHD.mean(2) if query == "kv_head" else q_cGHD.mean((1, 2))[:, None]
    unit = torch.nn.functional.normalize(compared, dim=-1)
    found: np.ndarray = torch.einsum("cgd,egd->gce", unit, unit).amin(0).numpy()
    return found


class _Listening(Step):
    """A pass that remembers, layer by layer, the queries [places, G, H, D] fp32 at some of its tokens.

    rotation: by which they are turned back to what they were before RoPE, None where they are not.
    """

    def __init__(
        self,
        runner: Runner,
        spans: list[Span],
        places: list[int],
        heard: dict[int, list[Tensor]],
        rotation: Rotation | None,
    ):
        super().__init__(runner.cache, runner.backend, spans, rotation)
        self.places, self.heard = places, heard

    def attend(self, call: Call) -> Tensor:
        geometry = self.cache.geometry
        if self.places:
            q_GHnD = call.q[0].unflatten(0, (geometry.kv_heads, geometry.group))[:, :, self.places].float()
            if self.rotation is not None:
                seen = self.spans[0].sequence.rows.seen
                q_GHnD = self.rotation.back(call.layer, q_GHnD, [seen + place for place in self.places])
            self.heard.setdefault(call.layer, []).append(q_GHnD.permute(2, 0, 1, 3).cpu().clone())
        return super().attend(call)
