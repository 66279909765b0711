"""Do kvfoot and kvpress keep the same entries? On a random Llama with peaked attention, prompt by prompt.

    python benchmarks/peers/same_entries.py --out results/peers.json

Both read the prompt in one pass under full attention and cut each layer after its own attention, so every layer sees
the same keys and queries on both sides. Two counts: `entries`, the kept entries that are the same, and `ranks`, the
(layer, head, rank) places, ranked by position, that hold the same one: an entry that differs shifts ranks up to where
it is made good, so ranks are the stricter. `logits`: the largest difference after one more token has been read on the
kept cache, over the largest logit. The positions that kvpress kept are found by its keys, bit for bit.
"""

import argparse
import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import aligned
import sides
import torch
from record import write
from transformers import LlamaConfig, LlamaForCausalLM

from kvfoot import Engine

SEEDS = (0, 1, 2)
PEAK = 2.5


def peaked(seed: int, *, hidden: int = 256, vocabulary: int = 8192) -> Any:
    """4 layers, 4 KV heads of 32, group 2; attention logits have a standard deviation of about PEAK.

    The vocabulary is larger than a prompt, whose tokens are all different: in the first layer equal tokens have equal
    norms, and which of them survives would be the sort's affair.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=8192,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, mean=1.0, std=0.1)
        elif "q_proj" in name or "k_proj" in name:
            torch.nn.init.normal_(weight, std=(PEAK / hidden) ** 0.5)
    return model


@dataclass
class Sides:
    """A model on both sides, and the dense keys of the prompts that it has read."""

    model: Any
    engine: Engine
    dense: dict[int, Any]

    @classmethod
    def of(cls, seed: int, dtype: torch.dtype, through: torch.dtype) -> "Sides":
        """Weights in dtype, rounded to `through` first."""
        model = peaked(seed).to(through).to(dtype)
        return cls(model, Engine(copy.deepcopy(model)), {})

    def run(self, pair: aligned.Pair, tokens: list[int]) -> tuple[sides.Positions, sides.Positions, float]:
        """Kept by kvfoot, kept by kvpress, and the difference of the logits one token later."""
        if len(tokens) not in self.dense:
            self.dense[len(tokens)] = sides.dense_keys(self.model, tokens)
        press = sides.press_of(pair.press, pair.ratio, pair.press_options, pair.scorer)
        theirs = sides.Plain(self.model, press)
        theirs.prefill(tokens)
        their_kept = theirs.kept(self.dense[len(tokens)])
        keep = pair.keep or Fraction(sides.count_of(len(tokens), pair.ratio), len(tokens))
        ours = sides.Ours(self.engine, pair.method, pair.options, keep)
        token = int(ours.prefill(tokens).argmax())
        our_kept = ours.kept()
        a, b = ours.step(token), theirs.step(token)
        ours.close()
        if pair.newest:
            fewer = sides.Ours(self.engine, pair.method, pair.options, keep - Fraction(1, len(tokens)))
            fewer.prefill(tokens)
            our_kept = newest(our_kept, fewer.kept(), len(tokens) - 1)
            fewer.close()
        return our_kept, their_kept, float((a - b).abs().max() / b.abs().max())


def newest(kept: sides.Positions, fewer: sides.Positions, last: int) -> sides.Positions:
    """`kept` with position `last`, in place of the worst entry where it is not kept; fewer: kept without the worst."""
    return [
        [row if last in row else [*less, last] for row, less in zip(layer, below, strict=True)]
        for layer, below in zip(kept, fewer, strict=True)
    ]


@dataclass
class Tally:
    """Entries kept and entries, ranks that agree, summed over layers, heads and models."""

    ours: int = 0
    theirs: int = 0
    shared: int = 0
    ranks: int = 0
    logits: float = 0.0

    def add(self, ours: sides.Positions, theirs: sides.Positions, logits: float = 0.0) -> None:
        for a, b in zip((r for x in ours for r in x), (r for x in theirs for r in x), strict=True):
            self.ours += len(a)
            self.theirs += len(b)
            self.shared += len(set(a) & set(b))
            self.ranks += sum(x == y for x, y in zip(a, b, strict=False))
        self.logits = max(self.logits, logits)

    def row(self) -> dict[str, Any]:
        most = max(self.ours, self.theirs)
        return {
            "kvfoot": self.ours,
            "kvpress": self.theirs,
            "entries": self.shared / most,
            "ranks": self.ranks / most,
            "logits": self.logits,
        }


def compare(pairs: tuple[aligned.Pair, ...]) -> dict[str, dict[str, Any]]:
    """fp32, over all models."""
    tallies = {pair.name: Tally() for pair in pairs}
    for seed in SEEDS:
        both = Sides.of(seed, torch.float32, torch.float32)
        for pair in pairs:
            tallies[pair.name].add(*both.run(pair, prompt(pair, seed)))
    layers = {pair.name: per_layer(both, pair) for pair in pairs if pair.method == "pyramidkv"}
    found = {}
    for pair in pairs:
        found[pair.name] = tallies[pair.name].row() | {"why": pair.why}
        if pair.name in layers:
            found[pair.name] |= layers[pair.name]
    return found


def per_layer(both: Sides, pair: aligned.Pair) -> dict[str, list[int]]:
    """Entries that each layer's first head keeps, on both sides."""
    ours, theirs, _ = both.run(pair, prompt(pair, SEEDS[-1]))
    return {"layers": [len(x[0]) for x in ours], "press_layers": [len(x[0]) for x in theirs]}


def in_bfloat16(pairs: tuple[aligned.Pair, ...]) -> dict[str, dict[str, float]]:
    """Entries that are the same in bf16: of the two sides, and of each side with itself in fp32 (equal weights).

    The second and third say whose scores stay closer to what exact ones would keep.
    """
    names = ("both", "kvfoot", "kvpress")
    tallies = {pair.name: {name: Tally() for name in names} for pair in pairs}
    for seed in SEEDS:
        rough = Sides.of(seed, torch.bfloat16, torch.bfloat16)
        exact = Sides.of(seed, torch.float32, torch.bfloat16)
        for pair in pairs:
            ours, theirs, _ = rough.run(pair, prompt(pair, seed))
            our_exact, their_exact, _ = exact.run(pair, prompt(pair, seed))
            tally = tallies[pair.name]
            tally["both"].add(ours, theirs)
            tally["kvfoot"].add(ours, our_exact)
            tally["kvpress"].add(theirs, their_exact)
    return {name: {k: t.row()["entries"] for k, t in tally.items()} for name, tally in tallies.items()}


def mask_outlives(seed: int) -> float:
    """A plain cache decodes a token; then the same after AdaKVPress has read another prompt on the same model.

    The largest difference of the logits, over the largest: 0 if a press' state were the cache's and not the model's.
    """
    model = peaked(seed)
    pair = next(p for p in aligned.ALIGNED if p.method == "adakv")
    logits = []
    for disturbed in (False, True):
        plain = sides.Plain(model)
        token = int(plain.prefill(prompt(pair, seed)).argmax())
        if disturbed:
            press = sides.press_of(pair.press, pair.ratio, pair.press_options, pair.scorer)
            sides.Plain(model, press).prefill(prompt(pair, seed + 1))
        logits.append(plain.step(token))
    return float((logits[1] - logits[0]).abs().max() / logits[0].abs().max())


def prompt(pair: aligned.Pair, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randperm(8192, generator=generator)[: pair.prompt].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="JSON record; other parts of it stay")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    same, apart = compare(aligned.ALIGNED), compare(aligned.APART)
    rough = in_bfloat16(tuple(replace(p, why="") for p in aligned.ALIGNED))
    model = {"family": "llama", "layers": 4, "kv_heads": 4, "group": 2, "head_dim": 32, "peak": PEAK, "seeds": [*SEEDS]}
    part = {"model": model, "prompt": aligned.PROMPT, "ratio": aligned.RATIO, "mask_outlives": mask_outlives(0)}
    write(
        args.out,
        "entries",
        part | {"aligned": same, "apart": apart, "bfloat16": rough, "mask_outlives": mask_outlives(0)},
    )


if __name__ == "__main__":
    main()
