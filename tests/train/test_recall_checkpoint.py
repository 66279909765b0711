"""The shipped checkpoint: its files, and that it really looks things up."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from kvfoot.evaluate.tasks.sample import Sample, Turn
from kvfoot.train.recall.evaluation import shipped
from kvfoot.train.recall.model import streaming_mask
from kvfoot.train.recall.scores import Streaming, encode_sample, run

FOLDER = Path(str(files("kvfoot"))) / "data" / "recall"
WORDS = [
    "harbor",
    "violin",
    "meadow",
    "candle",
    "tunnel",
    "pepper",
    "saddle",
    "ribbon",
    "walnut",
    "lantern",
    "mirror",
    "basket",
    "thunder",
    "velvet",
    "compass",
    "anchor",
    "feather",
    "kettle",
    "orchard",
    "pillow",
    "magnet",
    "canyon",
    "blanket",
    "trumpet",
    "glacier",
    "cushion",
    "whistle",
    "pebble",
    "curtain",
    "ladder",
]


def chain_sample(hops: int = 12) -> Sample:
    """Thirty keys in no order, behind a page of numbers."""
    keys = [f'"{word}-{WORDS[(i + 1) % len(WORDS)]}"' for i, word in enumerate(WORDS)]
    order = np.random.default_rng(3).permutation(len(keys))
    lines = "".join(f"Name of key: {keys[i]}\n" for i in order)
    page = " ".join(str(1000 + 7 * i) for i in range(150))
    ask = (
        f"Output a list of {hops} keys, where the first word of each key is the last word of the previous key. "
        f'The first key begins with "{WORDS[4]}" and the last key ends with "{WORDS[4 + hops]}".'
    )
    answer = (f" {keys[4]}", *(f", {key}" for key in keys[5 : 4 + hops]))
    return Sample("chain", ("The keys of the building, in no order.\n\n", lines, f"\n{page}"), (Turn(ask, answer),))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_files_are_small_and_of_the_shape_that_is_documented():
    shards = sorted(FOLDER.glob("*.safetensors"))
    assert len(shards) == 2
    assert all(shard.stat().st_size <= 14 * 2**20 for shard in shards)
    assert sum(shard.stat().st_size for shard in shards) <= 30e6
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["max_position_embeddings"] == 16384
    assert config["num_attention_heads"] >= 2 * config["num_key_value_heads"]
    assert (FOLDER / "README.md").is_file()


def test_it_walks_a_chain_and_the_one_pass_score_is_what_it_writes(tokenizer):
    from transformers import AutoModelForCausalLM

    encoded = encode_sample(tokenizer, chain_sample())
    start, end = encoded.units[0][0], encoded.units[-1][1]
    net = shipped(FOLDER, torch.device("cpu"))
    outcome = run(net, [encoded], len(encoded.tokens), 1)
    assert outcome.right.mean() >= 0.9

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    assert sum(value.numel() for value in model.parameters()) == 14_556_544
    prompt = torch.from_numpy(encoded.tokens[:start])[None]
    written = model.generate(prompt, max_new_tokens=end - start, do_sample=False, eos_token_id=None)[0, start:].numpy()
    same = [(written[a - start : b - start] == encoded.tokens[a:b]).all() for a, b, _ in encoded.units]
    assert np.cumprod(same).sum() == np.cumprod(outcome.right).sum()


def test_without_far_context_it_cannot(tokenizer):
    """All heads on 16 sinks and the last 64 tokens: the answer's nll rises from nearly nothing to nats."""
    encoded = encode_sample(tokenizer, chain_sample())
    net = shipped(FOLDER, torch.device("cpu"))
    length = len(encoded.tokens)
    every = frozenset((layer, head) for layer in range(8) for head in range(3))
    near = Streaming(every, streaming_mask(length, 16, 64, torch.device("cpu")))
    assert run(net, [encoded], length, 1).nll.mean() < 0.1
    assert run(net, [encoded], length, 1, near).nll.mean() > 1.0


def test_the_chat_template_is_the_form_of_training(tokenizer):
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(FOLDER).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|bos|><|user|>Hi<|assistant|>"
    assert tokenizer.encode(text).ids[:2] == [1, 3]
