"""GGUF files: the header, read without copying weights, and the conversion of Llama and Qwen weights to safetensors.

Own reader and own tensor map instead of `from_pretrained(gguf_file=...)`: that needs the whole model in fp32, differs
between transformers versions, and drops what it does not know. Here an unknown tensor or key is an error.
"""

import json
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvfoot.core.errors import ModelError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SCALARS = {0: "B", 1: "b", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
CHUNK = 1 << 22  # elements dequantised at a time: 16 MB in fp32
FOLDER_CURE = "give the model's original Hugging Face folder instead"


@dataclass(frozen=True)
class Tensor:
    """One stored tensor: shape in torch order (rows first), `kind` a GGMLQuantizationType, bytes [start, stop)."""

    shape: tuple[int, ...]
    kind: int
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """Everything of a GGUF file but the weights: `fields` by key, `tensors` by name."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture"))

    def of_arch(self, key: str, default: Any = None) -> Any:
        """The value of `<architecture>.<key>`. Raises ModelError if it is absent and there is no default."""
        value = self.fields.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise ModelError(f"{self.path}: the header lacks {self.architecture}.{key}: convert the model again")
        return value


class _Cursor:
    """Reads values off a buffer and says "truncated" where the buffer ends."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4  # behind the magic

    def take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise truncated(self.path, len(self.data), self.at)
        return self.data[start : self.at]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def string(self) -> str:
        return self.take(self.u64()).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, count = self.u32(), self.u64()
            if inner in SCALARS:
                dtype = np.dtype(SCALARS[inner])
                return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
            return [self.value(inner) for _ in range(count)]
        if kind not in SCALARS:
            raise ModelError(f"{self.path}: value type {kind} at byte {self.at} is none of GGUF's: download it again")
        value = np.frombuffer(self.take(np.dtype(SCALARS[kind]).itemsize), SCALARS[kind])[0]
        # A float32 of the header is meant as its shortest decimal: 1e-05, not 9.999999747378752e-06.
        return float(str(value)) if isinstance(value, np.float32) else value.item()


def truncated(path: Path, size: int, needed: int) -> ModelError:
    """The error for a file of `size` bytes that must have at least `needed`."""
    return ModelError(f"{path}: truncated, {size:,} bytes of at least {needed:,}: download or copy the file again")


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file, version 2 or 3, and check that the file holds every tensor it lists.

    Raises ModelError if the file is missing, no GGUF, truncated, or stores a tensor in an unknown type.
    """
    from gguf import GGML_QUANT_SIZES

    if not path.is_file():
        raise ModelError(f"{path}: no such file: give the path of a .gguf file")
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise ModelError(f"{path}: no GGUF file (starts with {magic!r}): download it again or give another file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(path, data)
            if (version := cursor.u32()) not in (2, 3):
                raise ModelError(f"{path}: GGUF version {version}, only 2 and 3 (little-endian) are read: convert anew")
            count, keys = cursor.u64(), cursor.u64()
            try:
                fields = {cursor.string(): cursor.value(cursor.u32()) for _ in range(keys)}
                listed = [
                    (cursor.string(), [cursor.u64() for _ in range(cursor.u32())], cursor.u32(), cursor.u64())
                    for _ in range(count)
                ]
            except UnicodeDecodeError as error:
                raise ModelError(f"{path}: damaged header near byte {cursor.at}: download the file again") from error
    align = int(fields.get("general.alignment", 32))
    base = -(-cursor.at // align) * align
    sizes = {int(kind): block_and_bytes for kind, block_and_bytes in GGML_QUANT_SIZES.items()}
    tensors: dict[str, Tensor] = {}
    for name, dims, kind, offset in listed:
        if kind not in sizes:
            raise ModelError(f"{path}: {name} is stored in type {kind}, unknown to gguf: update the gguf package")
        block, width = sizes[kind]
        stop = base + offset + int(np.prod(dims)) // block * width
        tensors[name] = Tensor(tuple(reversed(dims)), kind, base + offset, stop)
    if (needed := max((tensor.stop for tensor in tensors.values()), default=0)) > size:
        raise truncated(path, size, needed)
    return Header(path, fields, tensors)


def config(header: Header, special: dict[str, int]) -> dict[str, Any]:
    """The `config.json` of the model. `special`: bos, eos and pad ids by transformers' names.

    Raises ModelError for other architectures, RoPE scaling, partial rotary, and a file that is one of several.
    """
    path, arch = header.path, header.architecture
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{path}: architecture {arch!r} is not read from GGUF (only {known}): {FOLDER_CURE}")
    if header.fields.get("split.count", 0) > 1:
        raise ModelError(f"{path}: one of several files: join them first with llama-gguf-split --merge")
    if (scaling := header.of_arch("rope.scaling.type", "none")) != "none":
        raise ModelError(f"{path}: RoPE scaling {scaling!r} is not read from GGUF: {FOLDER_CURE}")
    heads, hidden = int(header.of_arch("attention.head_count")), int(header.of_arch("embedding_length"))
    rotary = int(header.of_arch("rope.dimension_count", hidden // heads))
    head_dim = int(header.of_arch("attention.key_length", rotary))
    if {rotary, int(header.of_arch("attention.value_length", head_dim))} != {head_dim}:
        raise ModelError(f"{path}: rotary, key and value sizes differ, which is not read from GGUF: {FOLDER_CURE}")
    if "token_embd.weight" not in header.tensors:
        raise ModelError(f"{path}: no tensor token_embd.weight: this file holds no whole model, give another")
    return {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "hidden_size": hidden,
        "intermediate_size": int(header.of_arch("feed_forward_length")),
        "num_hidden_layers": int(header.of_arch("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(header.of_arch("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "max_position_embeddings": int(header.of_arch("context_length")),
        "rms_norm_eps": float(header.of_arch("attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(header.of_arch("rope.freq_base", 10000.0))},
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": _tied(header),
        "hidden_act": "silu",
        "dtype": "bfloat16",
        "transformers_version": "5.2.0",  # without it 5.17 warns of a "mistral regex" that is not there
        **special,
    }


def _tied(header: Header) -> bool:
    """Whether input and output embedding are one matrix: stored once, or twice at two precisions (Qwen's files).

    Two quantisations of one matrix have row cosines near 0.999; matrices trained apart stay far below 0.95.
    """
    names = ("token_embd.weight", "output.weight")
    if names[1] not in header.tensors:
        return True
    rows = header.tensors[names[0]].shape[0]
    if header.tensors[names[1]].shape != header.tensors[names[0]].shape:
        return False
    cosines = []
    for row in np.linspace(0, rows - 1, num=min(rows, 128)).astype(int):
        a, b = (next(_chunks(header, name, int(row), int(row) + 1))[0] for name in names)
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosines += [float(a @ b) / norm] if norm else []
    return bool(cosines) and float(np.median(cosines)) > 0.95


def weight_map(header: Header, config: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """transformers name -> (GGUF name, heads to un-permute or 0), every tensor of the model, shapes checked.

    llama.cpp stores Llama's q and k with the two halves of each head interleaved; Qwen's are as in transformers.
    Raises ModelError if the file lacks a tensor, has one of another shape, or one that the model has no place for.
    """
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    arch, swap = header.architecture, header.architecture == "llama"
    layer: list[tuple[str, str, tuple[int, ...], int]] = [
        ("input_layernorm.weight", "attn_norm.weight", (hidden,), 0),
        ("self_attn.q_proj.weight", "attn_q.weight", (heads * dim, hidden), heads * swap),
        ("self_attn.k_proj.weight", "attn_k.weight", (kv_heads * dim, hidden), kv_heads * swap),
        ("self_attn.v_proj.weight", "attn_v.weight", (kv_heads * dim, hidden), 0),
        ("self_attn.o_proj.weight", "attn_output.weight", (hidden, heads * dim), 0),
        ("post_attention_layernorm.weight", "ffn_norm.weight", (hidden,), 0),
        ("mlp.gate_proj.weight", "ffn_gate.weight", (inner, hidden), 0),
        ("mlp.up_proj.weight", "ffn_up.weight", (inner, hidden), 0),
        ("mlp.down_proj.weight", "ffn_down.weight", (hidden, inner), 0),
    ]
    if arch == "qwen2":
        sizes = {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * dim}
        layer += [(f"self_attn.{x}_proj.bias", f"attn_{x}.bias", (size,), 0) for x, size in sizes.items()]
    if arch == "qwen3":
        layer += [(f"self_attn.{x}_norm.weight", f"attn_{x}_norm.weight", (dim,), 0) for x in "qk"]
    embedding: tuple[int, ...] = (config["vocab_size"], hidden)
    plan = [("model.embed_tokens.weight", "token_embd.weight", embedding, 0)]
    if not config["tie_word_embeddings"]:
        plan.append(("lm_head.weight", "output.weight", embedding, 0))
    elif "output.weight" in header.tensors and _bits(header, "output.weight") > _bits(header, "token_embd.weight"):
        plan[0] = ("model.embed_tokens.weight", "output.weight", embedding, 0)
    plan.append(("model.norm.weight", "output_norm.weight", (hidden,), 0))
    for i in range(config["num_hidden_layers"]):
        plan += [(f"model.layers.{i}.{to}", f"blk.{i}.{name}", shape, n) for to, name, shape, n in layer]
    for _, name, expected, _ in plan:
        if name not in header.tensors:
            raise ModelError(f"{header.path}: no tensor {name}: the file is no complete {arch} model, give another")
        if (found := header.tensors[name].shape) != expected:
            raise ModelError(f"{header.path}: {name} is {found}, the header says {expected}: convert the model again")
    if extra := sorted(set(header.tensors) - {name for _, name, _, _ in plan} - {"token_embd.weight", "output.weight"}):
        raise ModelError(f"{header.path}: tensor {extra[0]} has no place in a {arch} model: {FOLDER_CURE}")
    return {to: (name, n) for to, name, _, n in plan}


def _bits(header: Header, name: str) -> float:
    tensor = header.tensors[name]
    return 8 * (tensor.stop - tensor.start) / float(np.prod(tensor.shape))


def _chunks(header: Header, name: str, first: int = 0, last: int | None = None, whole: bool = False) -> Iterator[Any]:
    """Rows [first, last) of a tensor in fp32: pieces `[n, columns]` of at most CHUNK elements, or one if `whole`."""
    from gguf import GGMLQuantizationType, dequantize

    tensor = header.tensors[name]
    rows, columns = (1, tensor.shape[0]) if len(tensor.shape) == 1 else tensor.shape
    width = (tensor.stop - tensor.start) // rows
    last = rows if last is None else last
    step = last - first if whole else max(1, CHUNK // columns)
    raw = np.memmap(header.path, np.uint8, "r", tensor.start, (rows, width))
    for at in range(first, last, step):
        try:
            yield dequantize(np.array(raw[at : min(at + step, last)]), GGMLQuantizationType(tensor.kind))
        except NotImplementedError as error:
            raise ModelError(f"{header.path}: {name}: {error}: use another quantisation, Q8_0 say") from error


def write_weights(header: Header, config: dict[str, Any], target: Path) -> None:
    """Write the weights as one safetensors file, piece by piece: the peak is one matrix, not the model.
    F32 and F16 tensors keep their type, everything quantised becomes bf16 (error 2^-9, far below the quantisation's).
    """
    import torch
    from gguf import GGMLQuantizationType as Kind

    def encoded(rows: Any, heads: int, dtype: str) -> bytes:
        if heads:
            shape = rows.shape
            rows = rows.reshape(heads, shape[0] // heads // 2, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        if dtype == "BF16":
            rows = torch.from_numpy(np.ascontiguousarray(rows)).to(torch.bfloat16).view(torch.int16).numpy()
        packed: bytes = rows.astype("<f2" if dtype == "F16" else rows.dtype).tobytes()
        return packed

    plan = weight_map(header, config)
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for to, (name, _) in plan.items():
        tensor = header.tensors[name]
        dtype = {Kind.F32: "F32", Kind.F16: "F16"}.get(Kind(tensor.kind), "BF16")
        end = at + int(np.prod(tensor.shape)) * (4 if dtype == "F32" else 2)
        head[to] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for to, (name, heads) in plan.items():
            for rows in _chunks(header, name, whole=heads > 0):
                out.write(encoded(rows, heads, head[to]["dtype"]))
        out.flush()
        os.fsync(out.fileno())
