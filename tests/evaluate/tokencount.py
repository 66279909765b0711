"""Two tokenizers of different kinds that count, and the size of a sample by them."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

import kvfoot
from kvfoot.engine.prompts import JOINT

SHIPPED = Tokenizer.from_file(str(Path(kvfoot.__file__).parent / "data" / "recall" / "tokenizer.json"))
BYTES = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
BYTES.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
TOKENIZERS = {"shipped": SHIPPED, "bytes": BYTES}


def counter(tokenizer):
    return lambda texts: sum(len(found.ids) for found in tokenizer.encode_batch(texts, add_special_tokens=False))


COUNT = counter(SHIPPED)


def tokens(example, tokenizer=SHIPPED):
    """Tokens of a whole sample, answer's room included."""
    turn = example.document + (JOINT + example.question if example.question else "")
    count = counter(tokenizer)
    return count([turn]) + (count([example.prefix]) if example.prefix else 0) + example.room
