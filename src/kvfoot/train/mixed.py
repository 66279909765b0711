"""Training attention: z x full + (1 - z) x streaming per KV head, in an unmodified Hugging Face model, weights frozen.

Both branches share q, k and v. A row of tokens is packed from documents; no query sees another document, and sinks are
the first tokens of each. Neither branch builds a mask of T x T: the full one is causal attention per document, the
streaming one is banded, in blocks of the window's length over the block before it, itself and the sinks.

Shapes: B rows, G KV heads, H query heads per KV head, T tokens, n tokens of a document, D dimensions per head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import PreTrainedModel

from kvfoot.core.errors import UsageError

NAME = "kvfoot_mixed"
BLOCK = 128
"""Block of the released training kernel."""
HONOURED = {
    "dropout",
    "is_causal",
    "position_ids",
    "use_cache",
    "sliding_window",
    "cache_position",
    "output_attentions",
}
Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Near:
    """What a streaming head sees of a document: its first `sink` tokens and the last `window`, itself included.

    blocks: the released kernel's mask instead, by blocks of 128: whole sink blocks, and window / 128 local blocks of
    which the query's own is the last, so 897 to 1024 recent tokens for a window of 1024.
    """

    sink: int = 128
    window: int = 1024
    blocks: bool = False

    def __post_init__(self) -> None:
        if self.sink < 0 or self.window < 1:
            raise UsageError(f"sink={self.sink}, window={self.window}: give at least a window of 1 token")
        if self.blocks and self.window % BLOCK:
            raise UsageError(f"window={self.window}: with blocks of {BLOCK} it has to be a multiple of {BLOCK}")

    @property
    def sinks(self) -> int:
        return ceil(self.sink / BLOCK) * BLOCK if self.blocks else self.sink

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """bool, broadcast over positions in the document."""
        if self.blocks:
            recent = key // BLOCK > query // BLOCK - self.window // BLOCK
        else:
            recent = key > query - self.window
        return (key <= query) & (recent | (key < self.sinks))


def full(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention over one document: q [B, G, H, n, D], k and v [B, G, n, D] -> [B, G, H, n, D]."""
    B, G, H, n, D = q.shape
    keys, values = (x[:, :, None].expand(B, G, H, n, D).reshape(B, G * H, n, D) for x in (k, v))
    out = F.scaled_dot_product_attention(q.reshape(B, G * H, n, D), keys, values, is_causal=True, scale=scale)
    return out.view(B, G, H, n, D)


def streaming(q: Tensor, k: Tensor, v: Tensor, scale: float, near: Near) -> Tensor:
    """The same through the mask of `near`, at O(n x (sinks + 2 windows)).

    Blocks of the window's length; the keys of block i are the sinks and [(i - 1) W, (i + 1) W). Where that range has
    left the sinks behind, all blocks have one mask; the few before have their own.
    """
    n, W, S = q.shape[3], near.window, min(near.sinks, q.shape[3])
    if near.sees(torch.tensor(n - 1), torch.arange(n)).all():
        return full(q, k, v, scale)
    blocks = ceil(n / W)
    special = min(blocks, ceil(S / W) + 1)
    pad = blocks * W - n
    q, k, v = F.pad(q, (0, 0, 0, pad)), F.pad(k, (0, 0, W, pad)), F.pad(v, (0, 0, W, pad))
    parts = [_band(q, k, v, scale, near, S, i, i + 1) for i in range(special)]
    if special < blocks:
        parts.append(_band(q, k, v, scale, near, S, special, blocks))
    return torch.cat(parts, 3)[:, :, :, :n]


def _band(q: Tensor, k: Tensor, v: Tensor, scale: float, near: Near, S: int, first: int, last: int) -> Tensor:
    """Blocks [first, last) that share a mask; k and v begin with W tokens of padding."""
    B, G, H, _, D = q.shape
    W, N = near.window, last - first
    q_ = q[:, :, :, first * W : last * W].reshape(B, G, H, N, W, D).transpose(2, 3).reshape(B * G * N, H * W, D)

    def reach(x: Tensor) -> Tensor:
        band = x[:, :, first * W : (last + 1) * W].unfold(2, 2 * W, W).transpose(3, 4)
        sinks = x[:, :, None, W : W + S].expand(B, G, N, S, D)
        return torch.cat([sinks, band], 3).reshape(B * G * N, S + 2 * W, D)

    query = torch.arange(first * W, (first + 1) * W, device=q.device)[:, None]
    band = torch.arange((first - 1) * W, (first + 1) * W, device=q.device)[None]
    sinks = torch.arange(S, device=q.device)[None]
    mask = torch.cat([near.sees(query, sinks), near.sees(query, band) & (band >= S)], 1).repeat(H, 1)
    out = F.scaled_dot_product_attention(q_[:, None], reach(k)[:, None], reach(v)[:, None], mask, scale=scale)
    return out.view(B, G, N, H, W, D).transpose(2, 3).reshape(B, G, H, N * W, D)


class Mix(torch.autograd.Function):
    """z a + (1 - z) b in fp32, the answer in a's dtype: z [G] keeps its precision beside bf16 activations (trap 13)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(z, a, b)
        w = z[:, None, None, None]
        return (w * a + (1 - w) * b).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, a, b = ctx.saved_tensors
        w = z[:, None, None, None]
        wide = grad.float()
        return (wide * (a.float() - b.float())).sum((0, 2, 3, 4)), (w * wide).to(a.dtype), ((1 - w) * wide).to(b.dtype)


class Mixed:
    """The attention of a model, as long as `attached`: what a forward pass of one packed row reads.

    z: fp32 [layers, kv_heads], or None for full attention. spans: the row's documents, half-open, in order.
    keep: full attention's outputs are kept in `outputs`, one per layer; given: such outputs of another pass stand for
    the full branch, without gradient (DuoAttention's released code mixes in its teacher's, specs 3.5).
    """

    def __init__(self, near: Near):
        self.near = near
        self.z: Tensor | None = None
        self.spans: Spans = ()
        self.keep = False
        self.outputs: list[Tensor] = []
        self.given: list[Tensor] = []

    def placed(self, positions: Tensor) -> Tensor:
        """What the model is to be given for a pass whose tokens are at `positions` int64 [T]."""
        return positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [B, G x H, T, D], key and value [B, G, T, D] -> [B, T, G x H, D]."""
        B, heads, T, D = query.shape
        G = key.shape[1]
        q = query.view(B, G, heads // G, T, D)
        spans = self.spans or ((0, T),)
        if spans[0][0] != 0 or spans[-1][1] != T:
            raise UsageError(f"documents cover [{spans[0][0]}, {spans[-1][1]}) of a row of {T} tokens")
        parts = []
        for a, b in spans:
            own = q[:, :, :, a:b], key[:, :, a:b], value[:, :, a:b]
            if self.z is None:
                parts.append(full(*own, scale))
                continue
            wide = self.given[layer][:, :, :, a:b] if self.given else full(*own, scale)
            parts.append(Mix.apply(self.z[layer], wide, streaming(*own, scale, self.near)))
        out = torch.cat(parts, 3) if len(parts) > 1 else parts[0]
        if self.keep:
            self.outputs.append(out.detach())
        return out.reshape(B, heads, T, D).transpose(1, 2)

    @contextmanager
    def attached(self, model: PreTrainedModel) -> Iterator["Mixed"]:
        """Within, the model attends through this object; afterwards as it did before."""
        previous = model.config._attn_implementation
        name = f"{NAME}_{id(self)}"
        AttentionInterface.register(name, self._attention)
        AttentionMaskInterface.register(name, lambda *a, **k: None)
        model.set_attn_implementation(name)
        try:
            yield self
        finally:
            model.set_attn_implementation(previous)

    def _attention(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        strange = [name for name, x in kwargs.items() if x is not None and name not in HONOURED]
        if strange:
            raise UsageError(
                f"{type(module).__name__} asks for {', '.join(sorted(strange))}: its attention cannot be trained"
            )
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        return self.attend(module.layer_idx, query, key, value, scale), None
