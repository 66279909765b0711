"""A decoder written afresh in float64 from the weights alone, with a mask per (layer, KV head, query, key)."""

from typing import Any

import torch
from torch import Tensor


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotate(x: Tensor, theta: float) -> Tensor:
    """RoPE of x [heads, T, D] at positions 0 .. T - 1, halves paired."""
    T, D = x.shape[1:]
    frequency = (1.0 / theta ** (torch.arange(0, D, 2).float() / D)).double()
    angle = torch.arange(T).double()[:, None] * frequency
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


def forward(
    model: Any, tokens: list[int], visible: Tensor | None = None, keys: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Logits [T, vocabulary] and the scaled attention logits [layers, heads, T, T], unmasked.

    visible: bool [layers, kv_heads, T, T], which key each query may see; None: causal. keys: gets those of every
    layer, [kv_heads, T, D] after RoPE.
    """
    config = model.config
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

        def turned(name: str, count: int, h: Tensor, layer: int = layer) -> Tensor:
            """q or k [count, T, D]. A norm over all heads (OLMo2) or over each (Qwen3), known by its length."""
            y, scale = linear(f"self_attn.{name}_proj", h), f"self_attn.{name}_norm"
            weight = weights.get(f"model.layers.{layer}.{scale}.weight")
            whole = weight is not None and len(weight) == y.shape[-1]
            y = (normed(scale, y) if whole else y).view(T, count, -1)
            y = (y if whole else normed(scale, y)).transpose(0, 1)
            return rotate(y, rope) if rotated[layer] else y

        h = normed("input_layernorm", x)
        q, k = turned("q", heads, h), turned("k", groups, h)
        v = linear("self_attn.v_proj", h).view(T, groups, -1).transpose(0, 1)
        if keys is not None:
            keys.append(k)
        out, layer_scores = [], []
        for head in range(heads):
            kv = head // (heads // groups)
            s = q[head] @ k[kv].T / q.shape[-1] ** 0.5
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
