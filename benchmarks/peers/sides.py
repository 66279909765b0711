"""The two sides of the comparison: one prompt's life on kvpress, and the same on kvfoot.

kvpress is imported first: importing it wraps every attention function that transformers knows at that moment, and a
function of kvfoot's that was registered before would be wrapped with them.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import kvpress  # isort: skip
import torch
from kvpress.utils import compute_n_kept
from torch import Tensor
from transformers import DynamicCache

from kvfoot import Engine
from kvfoot.core.budget import Budget
from kvfoot.core.registry import method as find_method
from kvfoot.engine.sampler import Sampling

Positions = list[list[list[int]]]
"""Kept positions, ascending, [layers][kv_heads]."""


def press_of(name: str, ratio: float, options: dict[str, Any], scorer: dict[str, Any] | None = None) -> Any:
    """A press; `scorer`: the options of the SnapKVPress inside an AdaKVPress."""
    options = {k: float(v) if isinstance(v, Fraction) else v for k, v in options.items()}
    if scorer is not None:
        return getattr(kvpress, name)(kvpress.SnapKVPress(ratio, **scorer), **options)
    return getattr(kvpress, name)(compression_ratio=ratio, **options)


def count_of(prompt: int, ratio: float) -> int:
    """Entries that kvpress' scorers keep of a prompt."""
    return int(compute_n_kept(prompt, ratio))


@dataclass
class Plain:
    """transformers' own cache on an unmodified model, with a press or without one."""

    model: Any
    press: Any = None
    cache: Any = None
    seen: int = 0
    peak: int = 0

    @torch.inference_mode()
    def prefill(self, tokens: list[int]) -> Tensor:
        """Logits [vocabulary] after the prompt, in one pass. `peak`: the most bytes that the cache had when a layer had
        attended and was not yet compressed; looking takes about a millisecond in all."""
        self.cache, self.seen = DynamicCache(config=self.model.config), len(tokens)
        look = [layer.self_attn.register_forward_hook(self._look) for layer in self.model.model.layers]
        try:
            if self.press is None:
                return self._pass(tokens, 0)
            with self.press(self.model):
                return self._pass(tokens, 0)
        finally:
            for hook in look:
                hook.remove()

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        """One decoded token: position = tokens seen, as kvpress' own pipeline sets it."""
        self.seen += 1
        return self._pass([token], self.seen - 1)

    @property
    def held(self) -> int:
        """Bytes of the storages behind the cache's keys and values, each once."""
        parts = (x for layer in self.cache.layers if layer.is_initialized for x in (layer.keys, layer.values))
        return sum({s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for x in parts)}.values())

    def kept(self, dense: list[Tensor]) -> Positions:
        """dense: every layer's keys [kv_heads, tokens, head_dim] without a press, where kept keys are found again.

        Head-wise presses mask instead: what is kept is what they do not mask.
        """
        found: Positions = []
        for layer, keys in zip(self.cache.layers, dense, strict=True):
            module = self.model.model.layers[len(found)].self_attn
            masked = getattr(module, "masked_key_indices", None)
            heads, size = keys.shape[:2]
            if masked is not None:
                kept = torch.ones(heads, size, dtype=torch.bool)
                kept[masked[1], masked[2]] = False
                found.append([row.nonzero()[:, 0].tolist() for row in kept])
                continue
            rows = [_where(x, y) for x, y in zip(layer.keys[0], keys, strict=True)]
            found.append(rows)
        return found

    def _pass(self, tokens: list[int], start: int) -> Tensor:
        device = self.model.device
        ids = torch.tensor([tokens], device=device)
        positions = torch.arange(start, start + len(tokens), device=device)[None]
        out = self.model(
            input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        return out.logits[0, -1].float()

    def _look(self, *_: Any) -> None:
        self.peak = max(self.peak, self.held)


@dataclass
class Ours:
    """kvfoot's engine on a copy of the model."""

    engine: Engine
    method: str
    options: dict[str, Any]
    keep: Fraction | None
    evict: str = "post"
    chunk: int | None = None
    runner: Any = None
    sequence: Any = None

    def prefill(self, tokens: list[int]) -> Tensor:
        """Logits fp32 [vocabulary] after the prompt."""
        method = find_method(self.method, self.options)
        plan = self.engine.plan(method, Budget.of(self.keep, None, self.evict), len(tokens), self.chunk, 64)
        self.runner = self.engine.runner([plan], 64)
        self.sequence = self.runner.open(tokens, method, plan, Sampling(), 0)
        logits: Tensor = self.runner.prefill(self.sequence)
        return logits

    def step(self, token: int) -> Tensor:
        logits: Tensor = self.runner.feed(self.sequence, [token], None)
        return logits

    @torch.inference_mode()
    def kept(self) -> Positions:
        cache, rows, g = self.runner.cache, self.sequence.rows, self.engine.geometry
        every = [[cache.positions(rows, i, (h,))[0].tolist() for h in range(g.kv_heads)] for i in range(g.layers)]
        return [[sorted(row) for row in layer] for layer in every]

    @property
    def held(self) -> int:
        return int(self.runner.cache.pool.held_bytes)

    @property
    def peak(self) -> int:
        return int(self.runner.cache.pool.peak_bytes)

    def close(self) -> None:
        """The pages, and with the runner the pool, go back."""
        self.runner.cache.release(self.sequence.rows)
        self.runner = self.sequence = None


def dense_keys(model: Any, tokens: list[int]) -> list[Tensor]:
    """Every layer's keys after RoPE [kv_heads, tokens, head_dim], nothing removed."""
    plain = Plain(model)
    plain.prefill(tokens)
    return [layer.keys[0] for layer in plain.cache.layers]


def _where(kept: Tensor, dense: Tensor) -> list[int]:
    """Positions, ascending, of keys [kept, D] among [tokens, D]: bit for bit, each once."""
    distance = torch.cdist(kept.double(), dense.double(), compute_mode="donot_use_mm_for_euclid_dist")
    least = distance.min(1)
    found = sorted(least.indices.tolist())
    assert not least.values.any(), "a kept key is not one of the dense pass's"
    assert len(set(found)) == len(found), "a key is kept twice"
    return found
