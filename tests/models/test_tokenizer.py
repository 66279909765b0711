"""Tokenizers built from a header, against byte pair encoding written as plain loops over the header's own merges."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex

from kvfoot.core.errors import ModelError
from kvfoot.models import gguf, tokenizer

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXTS = [
    "The keys and values of 1234 tokens are kept; the others are freed.",
    "Don't keep what isn't read -- naïve café, 3.14159, x=10\n\n\tif a != b:  return\r\n",
    "Ελληνικά, 日本語, русский, עברית, 🙂🙃 e\u0301",
    "   leading and trailing   ",
    "",
    "\x00\x7f\xa0\u2028",
]


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def plain_bpe(header: gguf.Header, text: str) -> list[int]:
    """Ids of a text without special tokens: split, map bytes to letters, merge the best-ranked pair until none is."""
    ids = {token: i for i, token in enumerate(header.fields["tokenizer.ggml.tokens"])}
    rank = {tuple(merge.split(" ")): i for i, merge in enumerate(header.fields["tokenizer.ggml.merges"])}
    letters = byte_letters()
    if header.fields["tokenizer.ggml.pre"] == "smollm":
        pieces = [piece for part in regex.split(r"(\p{N})", text) for piece in regex.findall(GPT2_SPLIT, part)]
    else:
        import unicodedata

        pieces = regex.findall(tokenizer.QWEN_SPLIT, unicodedata.normalize("NFC", text))
    result = []
    for piece in pieces:
        word = [letters[byte] for byte in piece.encode()]
        while pairs := [pair for pair in pairwise(word) if pair in rank]:
            best = min(pairs, key=rank.__getitem__)
            merged, i = [], 0
            while i < len(word):
                hit = tuple(word[i : i + 2]) == best
                merged.append("".join(best) if hit else word[i])
                i += 2 if hit else 1
            word = merged
        result += [ids[token] for token in word]
    return result


def saved(made: Any, folder: Path) -> tuple[gguf.Header, Any]:
    """The header and the transformers tokenizer of a tiny GGUF."""
    from transformers import PreTrainedTokenizerFast

    header = gguf.read_header(made.write(folder / "tiny.gguf"))
    tokenizer.write_tokenizer(header, folder)
    return header, PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("pre", ["smollm", "qwen2"])
def test_ids_are_those_of_plain_bpe_and_decode_gives_the_text_back(tiny, tmp_path, pre):
    header, ours = saved(tiny(pre=pre), tmp_path)
    for text in TEXTS:
        ids = ours(text)["input_ids"]
        assert ids == plain_bpe(header, text)
        assert len(ids) <= len(text.encode())
        if pre == "smollm" or text.isascii():  # NFC composes e + accent, and that is all it may change
            assert ours.decode(ids) == text


@pytest.mark.parametrize("pre", ["smollm", "qwen2"])
def test_digits_are_single(tiny, tmp_path, pre):
    made = tiny(pre=pre)
    assert "1 2" in made.merges  # a merge that must never be used
    _, ours = saved(made, tmp_path)
    ids = ours("12 121212")["input_ids"]
    assert [ours.decode([i]).strip() for i in ids if ours.decode([i]).strip()] == list("12121212")


def test_special_ids_and_template_are_the_headers(tiny, tmp_path):
    made = tiny()
    header, ours = saved(made, tmp_path)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 0)
    assert ours.eos_token == "<|im_end|>"
    assert ours.chat_template == header.fields["tokenizer.chat_template"]
    assert len(ours) == header.tensors["token_embd.weight"].shape[0]  # no id without an embedding row
    assert ours.convert_ids_to_tokens(list(range(len(ours)))) == made.vocab
    assert ours.model_max_length == 256
    assert ours.padding_side == "left"
    text = ours.apply_chat_template([{"role": "user", "content": "keep 12"}], tokenize=False)
    assert text == "<|im_start|>user\nkeep 12<|im_end|>\n"
    ids = ours(text)["input_ids"]
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 1, 1)  # control tokens in text are one id each, none is added
    assert ours.decode(ids, skip_special_tokens=True) == "user\nkeep 12\n"


def test_bos_is_prepended_only_where_the_header_says_so(tiny, tmp_path):
    made = tiny()
    made.fields["tokenizer.ggml.add_bos_token"] = True
    header, ours = saved(made, tmp_path)
    assert ours("keep")["input_ids"] == [1, *plain_bpe(header, "keep")]
    assert ours("keep", add_special_tokens=False)["input_ids"] == plain_bpe(header, "keep")


def test_user_defined_tokens_are_one_id_and_survive_decoding(tiny, tmp_path):
    made = tiny()
    made.vocab[-1] = "<tool_call>"
    made.fields["tokenizer.ggml.merges"] = made.merges[:-1]
    made.fields["tokenizer.ggml.token_type"][-1] = 4
    _, ours = saved(made, tmp_path)
    last = len(made.vocab) - 1
    ids = ours("a<tool_call>b")["input_ids"]
    assert ids[1] == last
    assert ours.decode(ids, skip_special_tokens=True) == "a<tool_call>b"


def test_what_the_header_lacks_stays_absent(tiny, tmp_path):
    made = tiny()
    made.fields |= {"tokenizer.ggml.padding_token_id": None, "tokenizer.chat_template": None}
    header, ours = saved(made, tmp_path)
    assert ours.pad_token is None
    assert ours.chat_template is None
    assert tokenizer.end_ids(header) == 2


def test_end_of_turn_ends_a_generation_too(tiny, tmp_path):
    made = tiny()
    made.fields |= {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 2}
    assert tokenizer.end_ids(gguf.read_header(made.write(tmp_path / "tiny.gguf"))) == [0, 2]


def test_auto_tokenizer_reads_the_same_folder_alike(tiny, tmp_path):
    from transformers import AutoTokenizer

    from kvfoot.models import builtin

    path = tiny().write(tmp_path / "tiny.gguf")
    (tmp_path / "out").mkdir()
    builtin.convert(path, tmp_path / "out")
    ours = AutoTokenizer.from_pretrained(tmp_path / "out")
    header = gguf.read_header(path)
    assert [ours(text)["input_ids"] for text in TEXTS] == [plain_bpe(header, text) for text in TEXTS]
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, len(ours)) == (1, 2, 0, 320)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer kind 'llama' .*original Hugging Face folder"),
        ({"tokenizer.ggml.model": None}, "tokenizer kind None"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, r"pre-tokenizer 'llama-bpe' .*\(only qwen2, smollm\)"),
        ({"tokenizer.ggml.merges": None}, r"lacks tokenizer\.ggml\.merges"),
        ({"tokenizer.ggml.merges": ["qq zz"]}, "vocabulary and merges disagree"),
        ({"tokenizer.ggml.eos_token_id": 320}, "eos id 320 is outside the 320 tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 320}, "319 tokens occur twice"),
        (
            {"tokenizer.ggml.tokens": ["a"] * 330, "tokenizer.ggml.token_type": [1] * 330},
            "330 tokens but 320 embedding rows",
        ),
        ({"tokenizer.ggml.token_type": [1] * 5}, "5 token types for 320 tokens"),
    ],
)
def test_other_tokenizers_are_refused_in_one_line(tiny, tmp_path, change, line):
    made = tiny()
    made.fields |= change
    header = gguf.read_header(made.write(tmp_path / "tiny.gguf"))
    with pytest.raises(ModelError, match=line) as caught:
        tokenizer.write_tokenizer(header, tmp_path)
    assert "\n" not in str(caught.value)


def test_settings_are_written_by_name_that_every_version_knows(tiny, tmp_path):
    saved(tiny(), tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.smollm2
def test_smollm2_ids_are_plain_bpe_over_its_own_merges():
    """The header is long gone after conversion: vocabulary and merges are read from the saved tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    from kvfoot.models.builtin import builtin_folder

    folder = builtin_folder("smollm2")
    state = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["merges"]]
    fields = {
        "tokenizer.ggml.tokens": sorted(state["vocab"], key=state["vocab"].get),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.pre": "smollm",
    }
    header = gguf.Header(folder, fields, {})
    ours = PreTrainedTokenizerFast.from_pretrained(folder)
    assert (len(state["vocab"]), len(merges), len(ours)) == (49152, 48900, 49152)
    for text in TEXTS:
        assert ours(text)["input_ids"] == plain_bpe(header, text)
    assert ours("The capital of France is")["input_ids"] == [504, 3575, 282, 4649, 314]
