"""A small Llama of constructed weights whose retrieval heads are known, and rows that need them.

A pair token stands for (key, value), a query token for a key, and what follows a query is an answer token, the value
that the key had in this row. One head finds the pairs of family A, another those of family B; all others are noise.
Filler counts: its next token follows from the one before.
"""

import random
from typing import Any

import torch

from kvfoot.train.packing import Row

LAYERS, HEADS, DIM, WIDTH = 3, 4, 32, 96
PLANTED = ((1, 2), (2, 0))
"""(layer, KV head) that family 0 and family 1 need."""
KEYS = VALUES = 8
PAIR, QUERY, ANSWER, NOISE, BOS = 0, 128, 144, 160, 176
VOCABULARY = 177
LENGTH = 144
KEY_AT, VALUE_AT, ASK_AT, OUT_AT, CONSTANT, REST = 0, 16, 32, 48, 64, 65
SINK, WINDOW = 4, 16


def pair(family: int, key: int, value: int) -> int:
    return PAIR + (family * KEYS + key) * VALUES + value


def make(seed: int = 0, sharp: float = 2.0, sink: float = 0.0) -> Any:
    """sharp: of the planted queries and keys; a match's logit is some 9 times its square. sink: where there is nothing
    to match, the planted heads attend to the first token, with sink / 2 sharp of that."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, head_dim=DIM, vocab_size=VOCABULARY, max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1e8}, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(_embedding())
        for at, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.weight.zero_()
            attention = layer.self_attn
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(attention, name).weight.normal_(0, 0.15)
            attention.o_proj.weight.normal_(0, 0.003)
            for family, (where, head) in enumerate(PLANTED):
                if where == at:
                    _plant(attention, head, family, sharp, sink)
        head = torch.zeros(VOCABULARY, WIDTH)
        for answer in range(2 * VALUES):
            head[ANSWER + answer, OUT_AT + answer] = 2.0
        for i in range(16):
            head[NOISE + (i + 1) % 16, REST + i] = 1.0
        model.lm_head.weight.copy_(head)
    return model


def _embedding() -> torch.Tensor:
    found = torch.zeros(VOCABULARY, WIDTH)
    found[:, CONSTANT] = 1
    for family in range(2):
        for key in range(KEYS):
            found[QUERY + family * KEYS + key, ASK_AT + family * KEYS + key] = 2
            for value in range(VALUES):
                found[pair(family, key, value), KEY_AT + family * KEYS + key] = 2
                found[pair(family, key, value), VALUE_AT + family * KEYS + value] = 2
    for i in range(16):
        found[NOISE + i, REST + i] = 2
        found[ANSWER + i, REST + i] = 2
    found[BOS, REST + 20] = 2
    return found


def _plant(attention: Any, head: int, family: int, sharp: float, sink: float) -> None:
    """Queries match the pairs of their key in dimensions that RoPE hardly turns; the value goes to the output."""
    q, k, v, o = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
    rows = slice(head * DIM, (head + 1) * DIM)
    for weight in (q, k, v):
        weight[rows] = 0
    o[:, rows] = 0
    for i in range(KEYS):
        q[head * DIM + 8 + i, ASK_AT + family * KEYS + i] = sharp
        k[head * DIM + 8 + i, KEY_AT + family * KEYS + i] = sharp
        v[head * DIM + i, VALUE_AT + family * KEYS + i] = 0.4
        o[OUT_AT + family * KEYS + i, head * DIM + i] = 1.0
    q[head * DIM + 24, CONSTANT] = sink
    k[head * DIM + 24, REST + 20] = sharp


def row(number: int) -> Row:
    """Pairs of all keys in the first third, each asked for twice in the second half; queries are `supervised`."""
    rng = random.Random(f"planted/{number}")
    tokens = [BOS] + [NOISE + (number + i) % 16 for i in range(LENGTH - 1)]
    asked = [(family, key, rng.randrange(VALUES)) for family in range(2) for key in range(KEYS)]
    for place, (family, key, value) in zip(rng.sample(range(SINK, 50), 16), asked, strict=True):
        tokens[place] = pair(family, key, value)
    supervised = torch.zeros(LENGTH, dtype=torch.bool)
    questions = [*rng.sample(asked, 16), *rng.sample(asked, 16)]
    for place, (family, key, value) in zip(sorted(rng.sample(range(70, 142, 2), 32)), questions, strict=True):
        tokens[place] = QUERY + family * KEYS + key
        tokens[place + 1] = ANSWER + family * VALUES + value
        supervised[place] = True
    return Row(torch.tensor(tokens), ((0, LENGTH),), supervised)


def plain(number: int) -> Row:
    """The same without a word about what counts."""
    made = row(number)
    return Row(made.tokens, made.spans)
