"""What every evicting method keeps, as plain loops over attention logits: the other side of law 11.

A `Row` is one (layer, KV head) after one pass. `priorities` gives every position in scope a number, infinite where the
method protects it; the highest `limit` of them survive.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
from torch import Tensor

from kvfoot.core.registry import method as find_method
from kvfoot.methods.learn.scored import drawn


@dataclass
class Row:
    """logits: [H, T, T], scaled, of the KV head's query heads; mass: position -> a sum per query head.

    layer_logits: [heads, T, T], of all query heads of the layer; keys: [T, D]. plain: q [heads, T, D] and k [kv_heads,
    T, D] before RoPE, and v, of the layer. left: tokens of the prompt still to come. memo: scores by position.
    """

    layer: int
    head: int
    logits: Tensor
    layer_logits: Tensor
    keys: Tensor
    stored: list[int]
    new: list[int]
    scope: str
    limit: int
    mass: dict[int, list[float]] = field(default_factory=dict)
    plain: tuple[Tensor, Tensor, Tensor] | None = None
    left: int = 0
    memo: dict[int, float] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return self.new[-1]

    @property
    def contested(self) -> list[int]:
        return list(self.new) if self.scope == "new" else sorted(self.stored + self.new)

    def attention(self, h: int, query: int, keys: list[int], of: Tensor | None = None) -> dict[int, float]:
        """Softmax over those of `keys` that the query may see; `of`: logits other than the KV head's own."""
        seen = [k for k in keys if k <= query]
        logits = [float((self.logits if of is None else of)[h, query, k]) for k in seen]
        top = max(logits)
        weights = [math.exp(x - top) for x in logits]
        return {k: w / sum(weights) for k, w in zip(seen, weights, strict=True)}

    @property
    def heads(self) -> int:
        return int(self.logits.shape[0])


def snapkv(row: Row, o: dict[str, Any]) -> dict[int, float]:
    window, kernel, sink = o.get("window", 64), o.get("kernel", 5), o.get("sink", 0)
    keys = row.contested
    pooled: list[list[float]] = []
    for h in range(row.heads):
        votes = dict.fromkeys(keys, 0.0)
        for query in row.new[-window:]:
            for key, p in row.attention(h, query, keys).items():
                votes[key] += p
        prefix = [k for k in keys if k <= row.last - window]
        smooth = []
        for at in range(len(prefix)):
            near = [
                votes[prefix[j]] if 0 <= j < len(prefix) else 0.0 for j in range(at - kernel // 2, at + kernel // 2 + 1)
            ]
            smooth.append(sum(near) / kernel if o.get("pool", "avg") == "avg" else max(near))
        pooled.append(smooth)
    result: dict[int, float] = dict.fromkeys(keys, math.inf)
    for at, key in enumerate(prefix):
        each = [smooth[at] for smooth in pooled]
        if key >= sink:
            result[key] = sum(each) / len(each) if o.get("group", "mean") == "mean" else max(each)
    return result


def h2o_observe(row: Row, o: dict[str, Any]) -> None:
    for query in row.new:
        row.mass[query] = [0.0] * row.heads
    for query in row.new:
        for h in range(row.heads):
            for key, p in row.attention(h, query, row.stored + row.new).items():
                row.mass[key][h] += p


def h2o(row: Row, o: dict[str, Any]) -> dict[int, float]:
    recent = round(o.get("recent", 0.5) * row.limit)
    join = (lambda x: sum(x) / len(x)) if o.get("group", "mean") == "mean" else max
    return {k: math.inf if k > row.last - recent else join(row.mass[k]) for k in row.contested}


def streaming(row: Row, o: dict[str, Any]) -> dict[int, float]:
    return {k: math.inf if k < o.get("sink", 4) else float(k) for k in row.contested}


def tova(row: Row, o: dict[str, Any]) -> dict[int, float]:
    keys, every = row.contested, row.layer_logits
    rows = [row.attention(h, row.last, keys, every) for h in range(len(every))]
    return {k: sum(attention[k] for attention in rows) / len(rows) for k in keys}


def keynorm(row: Row, o: dict[str, Any]) -> dict[int, float]:
    result = {}
    for k in row.contested:
        kept = k < o.get("sink", 0) or k > row.last - o.get("window", 0)
        result[k] = math.inf if kept else -math.sqrt(sum(float(x) ** 2 for x in row.keys[k]))
    return result


def mixed(x: int) -> float:
    """In [0, 1)."""
    x %= 2**32
    for multiplier in (0x45D9F3B, 0x119DE1F3):
        x = ((x ^ (x >> 16)) * multiplier) % 2**32
    return ((x ^ (x >> 16)) >> 8) / 2**24


def random(row: Row, o: dict[str, Any]) -> dict[int, float]:
    result = {}
    for k in row.contested:
        value = mixed(((o.get("seed", 0) * 1_000_003 + row.layer) * 65_537 + row.head) * 1_000_003 + k)
        result[k] = math.inf if k < o.get("sink", 0) or k > row.last - o.get("window", 64) else value
    return result


def adakv(row: Row, o: dict[str, Any]) -> dict[int, float]:
    return snapkv(row, {"window": 32, "kernel": 7, "pool": "max"} | o)


@cache
def weights(name: str, layer: int, options: tuple[tuple[str, Any], ...], G: int, H: int, D: int) -> dict[str, Any]:
    """Of a layer: the file's, or the control's that `seed` names; as arrays in float64."""
    chosen: Any = find_method(name, dict(options))
    if chosen.learned is not None:
        found = chosen.learned.layers[layer]
    else:
        found = drawn(chosen.shapes(G, H, D), chosen.seed * 1009 + layer)
    return {key: x.double().numpy() for key, x in found.items()}


def scored(name: str, row: Row, o: dict[str, Any]) -> dict[int, float]:
    """By `SCORES[name]`; an entry's score never changes, so each is computed once."""
    assert row.plain is not None
    (heads, _, D), G = row.plain[0].shape, len(row.plain[1])
    w = weights(name, row.layer, tuple(sorted(o.items())), G, heads // G, D)
    for k in row.contested:
        if k not in row.memo:
            row.memo[k] = SCORES[name](w, row, k)
    return {k: row.memo[k] for k in row.contested}


def write_gate(w: dict[str, Any], row: Row, k: int) -> float:
    """arXiv 2512.17452: both forms of the key, each over its root mean square, through one layer of GELUs."""
    assert row.plain is not None
    head, parts = row.head, []
    for form, key in enumerate((row.plain[1][head, k].tolist(), row.keys[k].tolist())):
        root = math.sqrt(sum(x**2 for x in key) / len(key) + 1e-6)
        parts += [x / root * g for x, g in zip(key, w["norm"][head, form], strict=True)]
    logit = float(w["down_bias"][head, 0])
    for down, bias, up in zip(w["down"][head], w["up_bias"][head], w["up"][head], strict=True):
        a = float(bias + up @ parts)
        logit += float(down) * a * 0.5 * (1 + math.erf(a / math.sqrt(2)))
    return logit


def retaining(w: dict[str, Any], row: Row, k: int) -> float:
    """arXiv 2410.01805: q of all heads, then k, then v, before RoPE, through one layer of SiLUs."""
    assert row.plain is not None
    parts = [x for tensor in row.plain for head in tensor for x in head[k].tolist()]
    inner = [float(a) for a in w["up"] @ parts]
    return sum(float(d) * a / (1 + math.exp(-a)) for d, a in zip(w["down"][row.head], inner, strict=True))


SCORES: dict[str, Callable[[dict[str, Any], Row, int], float]] = {"locret": retaining, "wgkv": write_gate}


def wgkv(row: Row, o: dict[str, Any]) -> dict[int, float]:
    window = o.get("window", 256)
    return {k: math.inf if k > row.last - window else x for k, x in scored("wgkv", row, o).items()}


def locret(row: Row, o: dict[str, Any]) -> dict[int, float]:
    recent = o["stabilizers"] if row.left else o["local"]
    return {k: math.inf if k > row.last - recent else x for k, x in scored("locret", row, o).items()}


def head_rows(stop: int, layers: int, kv_heads: int, o: dict[str, Any]) -> list[list[int]]:
    """Entries per layer and KV head after a pass that ends at `stop`: a share of the heads holds sinks + window."""
    total = layers * kv_heads
    ranked = sorted(range(total), key=lambda i: -mixed(o.get("seed", 0) * 1_000_003 + i))
    full = ranked[: math.floor((1 - Fraction(str(o["sparsity"]))) * total)] if o["roles"] == "random" else []
    each = [stop if i in full else min(stop, o["sink"] + o["window"]) for i in range(total)]
    return [each[layer * kv_heads : (layer + 1) * kv_heads] for layer in range(layers)]


PRIORITIES: dict[str, Callable[[Row, dict[str, Any]], dict[int, float]]] = {
    "adakv": adakv,
    "duo": streaming,
    "h2o": h2o,
    "heads": streaming,
    "keynorm": keynorm,
    "locret": locret,
    "prulong": streaming,
    "pyramidkv": snapkv,
    "random": random,
    "snapkv": snapkv,
    "streaming": streaming,
    "streamingllm": streaming,
    "tova": tova,
    "wgkv": wgkv,
}
OBSERVE: dict[str, Callable[[Row, dict[str, Any]], None]] = {"h2o": h2o_observe}


def divide(name: str, rows: list[Row], kept: list[int], o: dict[str, Any]) -> list[int]:
    """What each row of a layer may keep where the layer's sum is promised; `kept` where equal scores leave a choice."""
    sizes = [len(row.contested) for row in rows]
    total = sum(row.limit for row in rows)
    if sum(sizes) <= total:
        return sizes
    ranked = []
    for head, row in enumerate(rows):
        own = sorted(PRIORITIES[name](row, o).values(), reverse=True)
        ranked += [(-value, rank, head) for rank, value in enumerate(own)]
    ranked.sort()
    best = [sum(head == h for _, _, head in ranked[:total]) for h in range(len(rows))]
    alpha = Fraction(str(o.get("alpha", 0 if name == "wgkv" else 0.2)))
    wanted = [(1 - alpha) * n + alpha * row.limit for n, row in zip(best, rows, strict=True)]
    given = [min(math.floor(w), size) for w, size in zip(wanted, sizes, strict=True)]
    while sum(given) < total:
        short = [(given[h] - wanted[h], h) for h in range(len(rows)) if given[h] < sizes[h]]
        given[min(short)[1]] += 1
    if given != kept:
        edge = ranked[total - 1][0]
        assert len({head for value, _, head in ranked if abs(value - edge) <= TIE}) > 1, f"{name}: {given}, not {kept}"
        assert sum(kept) == total
        return kept
    return given


def pyramid(count: int, size: int, layers: int, o: dict[str, Any]) -> list[int]:
    """specs of 2406.02069: a straight line from `high` to `low`, by whole entries."""
    outside = o.get("window", 64) + o.get("sink", 0)
    mean = count - outside
    if mean == 0 or size <= count or 2 * mean > size:
        return [count] * layers
    low = mean // o.get("beta", 20)
    high = 2 * mean - low
    if high > size - outside:
        high = size - outside
        low = 2 * mean - high
    return [outside + high - layer * ((high - low) // (layers - 1)) for layer in range(layers)]


def spared(count: int, size: int, layers: int, o: dict[str, Any]) -> list[int]:
    skip = o.get("skip", 2)
    return [1 << 30] * skip + [count] * (layers - skip)


SHARES: dict[str, Callable[[int, int, int, dict[str, Any]], list[int]]] = {"keynorm": spared, "pyramidkv": pyramid}
"""(count, entries in scope, layers, options) -> the most that a row of each layer keeps, where layers differ."""
ROWS: dict[str, Callable[[int, int, int, dict[str, Any]], list[list[int]]]] = {
    "duo": head_rows,
    "heads": head_rows,
    "prulong": head_rows,
}
"""(tokens seen, layers, KV heads, options) -> entries per row, where the heads of a layer differ by definition."""
TIE = 1e-6
STEPS = {"locret": 2**-10}
"""Scores that are compared in steps: closer ones are equal, and the newer entry stays."""


def shares(name: str, count: int, size: int, layers: int, options: dict[str, Any]) -> list[int]:
    return SHARES[name](count, size, layers, options) if name in SHARES else [count] * layers


def check(name: str, options: dict[str, Any], row: Row, kept: list[int]) -> None:
    """`kept` [positions of the row] is what the loops select, up to scores that tie."""
    if name not in PRIORITIES:
        pytest.fail(f"law 11 has no plain-loop selection for the method {name!r}: write one in tests/selections.py")
    where = f"{name}: layer {row.layer}, KV head {row.head}, after position {row.last}"
    assert len(set(kept)) == len(kept), f"{where}: an entry is kept twice"
    survivors = set(kept)
    if row.scope == "new":
        assert set(row.stored) <= survivors, f"{where}: an earlier survivor is gone"
        survivors -= set(row.stored)
    contested = row.contested
    assert survivors <= set(contested), f"{where}: an entry came back or was never there"
    if len(contested) <= row.limit:
        assert survivors == set(contested), where
        return
    priority = PRIORITIES[name](row, options)
    ranked = sorted(contested, key=lambda k: -priority[k])
    expected = set(ranked[: row.limit])
    if survivors != expected:
        assert len(survivors) == len(expected), where
        worst_kept = min(priority[k] for k in survivors)
        best_lost = max(priority[k] for k in contested if k not in survivors)
        assert best_lost - worst_kept <= STEPS.get(name, TIE), (
            f"{where}: keeps {sorted(survivors)}, loops say {sorted(expected)}"
        )
