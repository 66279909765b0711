"""The tokenizer of kvfoot-recall: byte-level BPE with single digits and single capitals, and its chat form."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BOS, END, USER, ASSISTANT = range(5)
HIDDEN = 5  # the first reserved entry: what the model sees of a token of running text that is hidden from it
SPECIALS = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", *(f"<|reserved_{i}|>" for i in range(11))]
CHAT_TEMPLATE = (
    "<|bos|>{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>"
    "{% else %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# a capital beside a capital stands alone, so that a name like XKQPL has the same five tokens everywhere
_CAPITALS = Regex(r"[A-Z](?=[A-Z])|(?<=[A-Z])[A-Z]")


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _letters_after_a_space(texts: Sequence[str]) -> Iterator[str]:
    """Every letter after a space, oftener than any pair of letters that it begins, and often enough for an entry.

    So BPE joins the space to the letter before the letter to the next one. Without it a rare beginning (" X", " ze")
    is a space by itself and then letters, a form that training hardly sees (docs/decisions/0020).
    """
    pairs, size = np.zeros((128, 128), np.int64), 0
    for text in texts:
        codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)
        pairs += np.bincount(codes[:-1] * 128 + codes[1:], minlength=128 * 128).reshape(128, 128)
        size += len(codes)
    for letter in _LETTERS:
        most = max(size // 1000, 1 + int(pairs[ord(letter), ord("a") : ord("z") + 1].max()))
        for start in range(0, most, 10_000):
            yield f" {letter}" * min(10_000, most - start)


def train_tokenizer(texts: Iterable[str], size: int = 4096) -> Tokenizer:
    """A BPE of `size` entries, 16 of them reserved, learnt from `texts`.

    A word after a space begins with a token that holds the space and its first letter, whatever the word.
    """
    texts = list(texts)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_CAPITALS, "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIALS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(itertools.chain(texts, _letters_after_a_space(texts)), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, positions: int) -> None:
    """tokenizer.json and tokenizer_config.json, as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[END],
        "pad_token": SPECIALS[PAD],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
