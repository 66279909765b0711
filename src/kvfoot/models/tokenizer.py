"""Tokenizers built from a GGUF's own metadata: byte-level BPE (kind `gpt2`), pre-tokenizers `smollm` and `qwen2`.

transformers' GGUF path builds them wrongly (5.2 and 5.17: eos is another id, extra ids without an embedding row), so
vocabulary, merges, special ids and chat template are taken from the header and from nowhere else.
"""

import json
from pathlib import Path
from typing import Any

from kvfoot.core.errors import ModelError
from kvfoot.models.gguf import FOLDER_CURE, Header

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRETOKENIZERS = ("qwen2", "smollm")
CONTROL, USER_DEFINED = 3, 4
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}


def check_kind(header: Header) -> None:
    """Raises ModelError unless the tokenizer is byte-level BPE with a known pre-tokenizer; names kind and cure."""
    kind = header.fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelError(f"{header.path}: tokenizer kind {kind!r} is not read from GGUF (only 'gpt2'): {FOLDER_CURE}")
    if (pre := header.fields.get("tokenizer.ggml.pre")) not in PRETOKENIZERS:
        known = ", ".join(PRETOKENIZERS)
        raise ModelError(f"{header.path}: pre-tokenizer {pre!r} is not read from GGUF (only {known}): {FOLDER_CURE}")
    for key in ("tokens", "merges", "token_type"):
        if not header.fields.get(f"tokenizer.ggml.{key}"):
            raise ModelError(f"{header.path}: the header lacks tokenizer.ggml.{key}: convert the model again")
    tokens, kinds = (len(header.fields[f"tokenizer.ggml.{key}"]) for key in ("tokens", "token_type"))
    if kinds != tokens:
        raise ModelError(f"{header.path}: {kinds} token types for {tokens} tokens: convert the model again")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None and tokens > embedding.shape[0]:
        rows = embedding.shape[0]
        raise ModelError(f"{header.path}: {tokens} tokens but {rows} embedding rows: convert the model again")


def special_ids(header: Header) -> dict[str, int]:
    """Ids of bos, eos, pad and unk, those that the header states. Raises ModelError for an id that is no token."""
    count = len(header.fields["tokenizer.ggml.tokens"])
    ids = {name: header.fields.get(f"tokenizer.ggml.{key}") for name, key in SPECIAL.items()}
    for name, value in ids.items():
        if value is not None and not 0 <= value < count:
            raise ModelError(f"{header.path}: {name} id {value} is outside the {count} tokens: convert the model again")
    return {name: int(value) for name, value in ids.items() if value is not None}


def end_ids(header: Header) -> int | list[int] | None:
    """The id(s) that end a generation: eos, and the end of a turn where the header states another one."""
    ends = [header.fields.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id")]
    unique = list(dict.fromkeys(int(end) for end in ends if end is not None))
    return unique[0] if len(unique) == 1 else unique or None


def build(header: Header) -> Any:
    """The `tokenizers.Tokenizer` of a GGUF: token i of the header has id i, and there are no others.

    Raises ModelError for another kind of tokenizer and for merges that the vocabulary does not hold.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    check_kind(header)
    tokens: list[str] = header.fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in header.fields["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise ModelError(f"{header.path}: {len(tokens) - len(vocab)} tokens occur twice: convert the model again")
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # tokenizers raises the bare class
        raise ModelError(f"{header.path}: vocabulary and merges disagree ({error}): convert the model again") from error
    if header.fields["tokenizer.ggml.pre"] == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = header.fields["tokenizer.ggml.token_type"]
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(t, special=kind == CONTROL, normalized=False) for t, kind in added])
    ids = special_ids(header)
    if header.fields.get("tokenizer.ggml.add_bos_token") and "bos" in ids:
        bos = tokens[ids["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, ids["bos"])]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def write_tokenizer(header: Header, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, by hand: what `save_pretrained` names the class, 5.2 and 5.17
    do not agree on. Decoders pad on the left."""
    tokens: list[str] = header.fields["tokenizer.ggml.tokens"]
    build(header).save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": int(header.of_arch("context_length")),
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": tokens[i] for name, i in special_ids(header).items()},
    }
    if template := header.fields.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=1), encoding="utf-8")
