"""A decoder written afresh in float64 from the weights alone, with a mask per (layer, KV head, query, key)."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from kvfoot.models.layout import windows


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotate(x: Tensor, theta: float, positions: Tensor | None = None) -> Tensor:
    """RoPE of x [heads, T, D] at positions [T], by default 0 .. T - 1, halves paired."""
    T, D = x.shape[1:]
    frequency = (1.0 / theta ** (torch.arange(0, D, 2).float() / D)).double()
    angle = (torch.arange(T) if positions is None else positions).double()[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def separate(config: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Phi-3's fused projections under the names that the other families have."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    found = {}
    for name, w in weights.items():
        if "qkv_proj" in name:
            size = len(w) // (heads + 2 * groups)
            parts = w.split([heads * size, groups * size, groups * size])
            found |= {name.replace("qkv", part): x for part, x in zip("qkv", parts, strict=True)}
        elif "gate_up_proj" in name:
            found |= {name.replace("gate_up", part): x for part, x in zip(("gate", "up"), w.chunk(2), strict=True)}
        else:
            found[name] = w
    return found


BORROWED = ("cohere2", "gemma3_text", "gpt_oss")
"""Families whose blocks are transformers' own, as are those of models with windows; the attention is written here."""


@torch.inference_mode()
def borrowed(model: Any, tokens: list[int], visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """`forward` with everything but the attention left to transformers: windows and sinks by their definition."""
    T, scores = len(tokens), []
    causal = torch.ones(T, T, dtype=torch.bool).tril()

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **kwargs: Any) -> Any:
        group = q.shape[1] // k.shape[1]
        out, logits = [], []
        for head in range(q.shape[1]):
            kv = head // group
            s = q[0, head].double() @ k[0, kv].double().T * scaling
            logits.append(s)
            see = causal.clone() if visible is None else visible[module.layer_idx, kv] & causal
            if kwargs.get("sliding_window"):
                see &= ~causal.tril(-kwargs["sliding_window"])
            s = s.masked_fill(~see, -torch.inf)
            if kwargs.get("s_aux") is not None:
                s = torch.cat([s, kwargs["s_aux"][head].double().expand(T, 1)], 1)
            out.append((s.softmax(-1)[:, :T] @ v[0, kv].double()).to(q.dtype))
        scores.append(torch.stack(logits))
        return torch.stack(out, 1)[None], None

    AttentionInterface.register("oracle", attention)
    AttentionMaskInterface.register("oracle", lambda *args, **kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("oracle")
    try:
        logits = model(torch.tensor([tokens])).logits[0].double()
    finally:
        model.set_attn_implementation(before)
    return logits, torch.stack(scores)


def forward(
    model: Any,
    tokens: list[int],
    visible: Tensor | None = None,
    keys: list[Tensor] | None = None,
    renumbered: list[Any] | None = None,
    plain: list[tuple[Tensor, Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits [T, vocabulary] and the scaled attention logits [layers, heads, T, T], unmasked.

    visible: bool [layers, kv_heads, T, T], which key each query may see; None: causal. keys: gets those of every
    layer, [kv_heads, T, D] after RoPE. renumbered: passes of a run whose positions are ranks among what a row holds.
    plain: gets q [heads, T, D] and k before RoPE and v of every layer.
    """
    config = model.config
    if config.model_type in BORROWED or windows(config):
        return borrowed(model, tokens, visible)
    weights = separate(config, {name: w.detach().double() for name, w in model.state_dict().items()})
    T, heads, groups = len(tokens), config.num_attention_heads, config.num_key_value_heads
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    rope = config.rope_parameters["rope_theta"]
    rotated = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    after = config.model_type == "olmo2"  # norms on what a block gives, not on what it takes
    x = weights["model.embed_tokens.weight"][torch.tensor(tokens)]
    scores = []
    for layer in range(config.num_hidden_layers):
        part = f"model.layers.{layer}."

        def linear(name: str, y: Tensor, part: str = part) -> Tensor:
            y = y @ weights[f"{part}{name}.weight"].T
            bias = weights.get(f"{part}{name}.bias")
            return y if bias is None else y + bias

        def normed(name: str, y: Tensor, part: str = part) -> Tensor:
            weight = weights.get(f"{part}{name}.weight")
            return y if weight is None else norm(y, weight, config.rms_norm_eps)

        def projected(name: str, count: int, h: Tensor, layer: int = layer) -> Tensor:
            """q or k [count, T, D] before RoPE. Norms over all heads (OLMo2) and over each (Qwen3) differ in length."""
            y, scale = linear(f"self_attn.{name}_proj", h), f"self_attn.{name}_norm"
            weight = weights.get(f"model.layers.{layer}.{scale}.weight")
            whole = weight is not None and len(weight) == y.shape[-1]
            y = (normed(scale, y) if whole else y).view(T, count, -1)
            return (y if whole else normed(scale, y)).transpose(0, 1)

        h = normed("input_layernorm", x)
        q, k = projected("q", heads, h), projected("k", groups, h)
        before = (q, k)
        if rotated[layer] and renumbered is None:
            q, k = rotate(q, rope), rotate(k, rope)
        v = linear("self_attn.v_proj", h).view(T, groups, -1).transpose(0, 1)
        if keys is not None:
            keys.append(k)
        if plain is not None:
            plain.append((*before, v))
        out, layer_scores = [], []
        for head in range(heads):
            kv = head // (heads // groups)
            s = q[head] @ k[kv].T / q.shape[-1] ** 0.5
            if renumbered is not None:
                s = by_rank(q[head], k[kv], renumbered, layer, kv, rope)
            layer_scores.append(s)
            see = causal if visible is None else visible[layer, kv] & causal
            out.append(s.masked_fill(~see, -torch.inf).softmax(-1) @ v[kv])
        scores.append(torch.stack(layer_scores))
        y = linear("self_attn.o_proj", torch.cat(out, -1))
        x = x + (normed("post_attention_layernorm", y) if after else y)
        h = x if after else normed("post_attention_layernorm", x)
        gate = linear("mlp.gate_proj", h)
        y = linear("mlp.down_proj", gate * gate.sigmoid() * linear("mlp.up_proj", h))
        x = x + normed("post_feedforward_layernorm", y)
    x = norm(x, weights["model.norm.weight"], config.rms_norm_eps)
    return x @ weights["lm_head.weight"].T, torch.stack(scores)


def by_rank(q: Tensor, k: Tensor, passes: list[Any], layer: int, kv: int, theta: float) -> Tensor:
    """Scaled logits [T, T] of q and k [T, D] before RoPE: in each pass a key's position is its rank in the row."""
    logits = torch.full((len(q), len(k)), torch.nan, dtype=q.dtype)
    stored: list[int] = []
    for state in passes:
        held = sorted(stored) + list(range(state.start, state.stop))
        at, b = torch.arange(len(held)), len(held) - (state.stop - state.start)
        turned_k = rotate(k[held][None], theta, at)[0]
        turned_q = rotate(q[state.start : state.stop][None], theta, at[b:])[0]
        logits[state.start : state.stop, held] = turned_q @ turned_k.T / q.shape[1] ** 0.5
        stored = state.kept[layer][kv]
    return logits


def visibility(passes: list[Any], layers: int, kv_heads: int, length: int) -> Tensor:
    """The mask of a run: a query sees what its row held before its pass, and its own pass up to itself."""
    mask = torch.zeros(layers, kv_heads, length, length, dtype=torch.bool)
    before: list[list[list[int]]] = [[[] for _ in range(kv_heads)] for _ in range(layers)]
    for state in passes:
        for layer in range(layers):
            for head in range(kv_heads):
                for query in range(state.start, state.stop):
                    mask[layer, head, query, before[layer][head]] = True
                    mask[layer, head, query, state.start : query + 1] = True
        before = state.kept
    return mask


def banded(mask: Tensor, band: Any) -> Tensor:
    """The mask [layers, kv_heads, T, T] narrowed to what queries of rows with a band (core.hooks) see."""
    T = mask.shape[-1]
    q, k = torch.arange(T)[:, None], torch.arange(T)[None]
    near = (k > q - band.window) | (k < band.sink)
    return mask & (near | ~torch.tensor(band.rows)[..., None, None])
