"""The model in plain functions over flat tokens (N = rows x T): everything but attention has one shape at every length,
so it is compiled once. Parameters carry their Hugging Face names.

Shapes: N flat tokens, D width, Q = heads x head_dim, K = kv_heads x head_dim, H heads, h head_dim, M mlp, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvfoot.train.recall.mix import GROUPS
from kvfoot.train.recall.options import ModelShape
from kvfoot.train.recall.spread import BLOCK, Head, Router, Split, offset_of, routed_attention

Parameters = dict[str, torch.Tensor]
# in this order: cuDNN is the fastest on an H100 (131K tokens, 6 heads, forward + backward: 12.9 ms at 16K; flash 20.7)
GPU_BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def init_parameters(shape: ModelShape, seed: int, qk_gain: float) -> Parameters:
    """fp32 on the CPU: embedding normal 0.02, inputs normal 0.5/sqrt(D), outputs zero, q/k norm gains `qk_gain`."""
    generator = torch.Generator().manual_seed(seed)
    width, found = shape.width, {}
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def normal(rows: int, std: float) -> torch.Tensor:
        return torch.randn(rows, width, generator=generator) * std

    std = 0.5 / math.sqrt(width)
    found["model.embed_tokens.weight"] = normal(shape.vocabulary, 0.02)
    for layer in range(shape.layers):
        a = f"model.layers.{layer}."
        found[a + "input_layernorm.weight"] = torch.ones(width)
        found[a + "self_attn.q_proj.weight"] = normal(q, std)
        found[a + "self_attn.k_proj.weight"] = normal(k, std)
        found[a + "self_attn.v_proj.weight"] = normal(k, std)
        found[a + "self_attn.q_norm.weight"] = torch.full((shape.head_dim,), qk_gain)
        found[a + "self_attn.k_norm.weight"] = torch.full((shape.head_dim,), qk_gain)
        found[a + "self_attn.o_proj.weight"] = torch.zeros(width, q)
        found[a + "post_attention_layernorm.weight"] = torch.ones(width)
        found[a + "mlp.gate_proj.weight"] = normal(shape.mlp, std)
        found[a + "mlp.up_proj.weight"] = normal(shape.mlp, std)
        found[a + "mlp.down_proj.weight"] = torch.zeros(width, shape.mlp)
    found["model.norm.weight"] = torch.ones(width)
    return found


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def before_attention(
    x_ND: torch.Tensor, norm: torch.Tensor, wq: torch.Tensor, wk: torch.Tensor, wv: torch.Tensor,
    q_norm: torch.Tensor, k_norm: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """-> q [N, H, h], k and v [N, kv, h], normed and rotated."""
    tokens, dim = x_ND.shape[0], q_norm.shape[0]
    y = rms_norm(x_ND, norm, eps)
    q, k, v = (y @ torch.cat([wq, wk, wv]).to(y.dtype).t()).split([wq.shape[0], wk.shape[0], wk.shape[0]], -1)
    q = rotate(rms_norm(q.reshape(tokens, -1, dim), q_norm, eps), cos, sin)
    k = rotate(rms_norm(k.reshape(tokens, -1, dim), k_norm, eps), cos, sin)
    return q, k, v.reshape(tokens, -1, dim)


def after_attention(
    x_ND: torch.Tensor, out_NQ: torch.Tensor, wo: torch.Tensor, norm: torch.Tensor,
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, eps: float,
) -> torch.Tensor:  # fmt: skip
    x_ND = x_ND + out_NQ @ wo.to(x_ND.dtype).t()
    y = rms_norm(x_ND, norm, eps)
    g, u = (y @ torch.cat([gate, up]).to(y.dtype).t()).chunk(2, -1)
    return x_ND + (F.silu(g) * u) @ down.to(x_ND.dtype).t()


def weighted_nll(
    x_ND: torch.Tensor, norm: torch.Tensor, embedding: torch.Tensor, target: torch.Tensor, weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """-> sum of weight x nll, and the nll of every token (detached)."""
    logits_NV = (rms_norm(x_ND, norm, eps) @ embedding.to(x_ND.dtype).t()).float()
    nll = torch.logsumexp(logits_NV, -1) - logits_NV.gather(1, target[:, None])[:, 0]
    return (nll * weight).sum(), nll.detach()


class Streaming(NamedTuple):
    """KV heads turned into streaming heads: (layer, head) pairs and what they may see, mask [T, T], True for seen."""

    heads: frozenset[Head]
    mask: torch.Tensor


def streaming_mask(length: int, sinks: int, window: int, device: torch.device) -> torch.Tensor:
    """[T, T]: the first `sinks` positions and the last `window`, itself included."""
    i = torch.arange(length, device=device)
    return (i[None] <= i[:, None]) & ((i[None] < sinks) | (i[:, None] - i[None] < window))


class Net:
    """Parameters and the functions above. `far` and `streaming` in `hidden`: see `_attend`."""

    def __init__(self, shape: ModelShape, parameters: Parameters, dtype: torch.dtype, compiled: bool = False) -> None:
        self.shape, self.parameters, self.dtype = shape, parameters, dtype

        def maybe(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False) if compiled else function

        self.before, self.after, self.nll = maybe(before_attention), maybe(after_attention), maybe(weighted_nll)
        self.backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        self.router = Router(shape.layers, shape.kv_heads, len(GROUPS))
        self.router.to(parameters["model.norm.weight"].device)
        self._angles: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def _rotation(self, rows: int, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if (rows, length) not in self._angles:
            half = torch.arange(0, self.shape.head_dim, 2, device=device).float() / self.shape.head_dim
            angle = torch.arange(length, device=device).float()[:, None] * self.shape.theta**-half
            self._angles[rows, length] = (
                angle.cos().repeat(rows, 1)[:, None].contiguous(),
                angle.sin().repeat(rows, 1)[:, None].contiguous(),
            )
        return self._angles[rows, length]

    def _full(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (x.repeat_interleave(self.shape.group, 1) for x in (k, v))
        return self._causal(q, k, v)

    def _causal(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(self.backends, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def _anywhere(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Causal attention for any number of rows: cuDNN would plan anew for every one of them."""
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: int, layer: int,
        far: Split | None, streaming: Streaming | None,
    ) -> torch.Tensor:  # fmt: skip
        """far: a routed batch. streaming: KV heads that read through a mask [T, T] instead of everything."""
        q, k, v = (x.view(-1, length, x.shape[1], self.shape.head_dim).transpose(1, 2) for x in (q, k, v))
        if far is not None and length % BLOCK == 0 and length > BLOCK:
            owners = self.router.far[layer]
            out = routed_attention(self._causal, self._anywhere, q, k, v, owners, far, offset_of(layer))
        else:
            out = self._full(q, k, v)
        if streaming is not None:
            group = self.shape.group
            for head in sorted(head for at, head in streaming.heads if at == layer):
                queries = slice(head * group, (head + 1) * group)
                keys, values = (x[:, head : head + 1].expand(-1, group, -1, -1) for x in (k, v))
                with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
                    out = out.clone()
                    out[:, queries] = F.scaled_dot_product_attention(
                        q[:, queries], keys, values, attn_mask=streaming.mask
                    )
        return out.transpose(1, 2).reshape(-1, self.shape.heads * self.shape.head_dim)

    def hidden(
        self, tokens: torch.Tensor, far: Split | None = None,
        streaming: Streaming | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """tokens [rows, T] -> the last residual stream [N, D], before the final norm."""
        rows, length = tokens.shape
        cos, sin = self._rotation(rows, length, tokens.device)
        p, eps = self.parameters, self.shape.eps
        x = F.embedding(tokens.reshape(-1), p["model.embed_tokens.weight"]).to(self.dtype)
        for layer in range(self.shape.layers):
            a = f"model.layers.{layer}."
            q, k, v = self.before(
                x, p[a + "input_layernorm.weight"],
                *(p[f"{a}self_attn.{name}.weight"] for name in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")),
                cos, sin, eps,
            )  # fmt: skip
            out = self._attend(q, k, v, length, layer, far, streaming)
            x = self.after(
                x, out, p[a + "self_attn.o_proj.weight"], p[a + "post_attention_layernorm.weight"],
                *(p[f"{a}mlp.{name}.weight"] for name in ("gate_proj", "up_proj", "down_proj")),
                eps,
            )  # fmt: skip
        return x

    def loss(
        self, tokens: torch.Tensor, weight: torch.Tensor, far: Split | None = None, read: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """weight [rows, T]: of predicting each token. read: what is read instead of `tokens`, which are predicted.

        -> weighted sum of nll; nll [rows, T], entry t predicts t + 1.
        """
        x = self.hidden(tokens if read is None else read, far)
        target, shifted = torch.roll(tokens, -1, 1), torch.roll(weight, -1, 1)
        shifted[:, -1] = 0
        p = self.parameters
        total, nll = self.nll(
            x, p["model.norm.weight"], p["model.embed_tokens.weight"], target.reshape(-1), shifted.reshape(-1),
            self.shape.eps,
        )  # fmt: skip
        return total, nll.view(tokens.shape)

    def logits(self, x_ND: torch.Tensor) -> torch.Tensor:
        """fp32 logits of some rows of `hidden`."""
        p = self.parameters
        return (
            rms_norm(x_ND, p["model.norm.weight"], self.shape.eps) @ p["model.embed_tokens.weight"].to(x_ND.dtype).t()
        ).float()
