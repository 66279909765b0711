"""`load`: a model and its tokenizer from a built-in alias, a local folder, a GGUF file or a hub name."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvfoot.core.errors import ModelError, UsageError, did_you_mean
from kvfoot.models.builtin import ALIASES, BUILTIN, SHIPPED, builtin_folder, gguf_folder, home
from kvfoot.models.layout import check

if TYPE_CHECKING:
    import torch

Source = Literal["builtin", "hub", "folder", "gguf"]
DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "float32": "float32",
    "fp32": "float32",
}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Loaded:
    """A stock transformers model in eval mode, its tokenizer, and where they came from.

    revision: the hub's commit, the SHA-256 of the GGUF, or for a folder (`recall` is one) its `fingerprint`.
    """

    model: Any
    tokenizer: Any
    name: str
    source: Source
    revision: str
    dtype: "torch.dtype"


def load(
    name: str,
    *,
    dtype: "str | torch.dtype" = "auto",
    device: str = "auto",
    on_event: Callable[[str], None] | None = None,
) -> Loaded:
    """Load a decoder and its tokenizer.

    name: an alias (`smollm2`, `recall`), a local folder, a `.gguf` file, or a hub name, tried in this order.
    dtype: "auto" is bf16 on CUDA and on processors with bf16 instructions, else fp32.
    device: "auto" is CUDA where there is one, else the CPU.
    on_event: called with one line before anything slow (a download, a conversion).
    Raises ModelError, one line with the cure, if the model is missing, damaged, unsupported, or cannot be downloaded;
    UsageError for an unknown dtype or device. A family that is refused (layout.py) is not downloaded.
    """
    where = _device(device)
    kind = _dtype(dtype, where)
    path = Path(name).expanduser()
    revision = ""
    source: Source
    if name in BUILTIN:
        source, revision = "builtin", BUILTIN[name].gguf_sha256
        target = str(builtin_folder(name, on_event))
    elif name in SHIPPED:
        source, target = "builtin", str(SHIPPED[name])
    elif path.is_dir():
        source, target = "folder", str(path)
    elif path.suffix == ".gguf" or path.is_file():
        source = "gguf"
        folder, revision = gguf_folder(path, on_event)
        target = str(folder)
    elif HUB_NAME.fullmatch(name) and not name.startswith("."):
        source, target = "hub", name
    else:
        raise ModelError(f"{name}: no such folder: give a folder, a .gguf file, a hub name or {' or '.join(ALIASES)}")
    if source != "hub":
        check_folder(Path(target))
    if source == "folder" or name in SHIPPED:
        revision = fingerprint(Path(target))
    with _one_line(name, source), _no_bars():
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

        local = source != "hub" or _unreachable()
        config = AutoConfig.from_pretrained(target, local_files_only=local)
        if config.is_encoder_decoder:
            raise ModelError(f"{name}: {config.model_type} is an encoder-decoder: give a decoder (causal LM)")
        own = source in ("builtin", "gguf")
        tokenizer = (PreTrainedTokenizerFast if own else AutoTokenizer).from_pretrained(target, local_files_only=local)
        check(config)  # before gigabytes are fetched
        model, report = AutoModelForCausalLM.from_pretrained(
            target, dtype=kind, output_loading_info=True, local_files_only=local
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name}: no weights for {missing[0]} ({len(missing)} missing): download the model again")
    revision = revision or getattr(model.config, "_commit_hash", None) or "unknown"
    return Loaded(model.to(where).eval(), tokenizer, name, source, revision, kind)


def check_folder(folder: Path) -> None:
    """Raises ModelError unless the folder has a config, a tokenizer, and weights of the length their headers state."""
    cure = f"delete {folder}, it is made again" if home() in folder.parents else "download or copy the folder again"
    cure = "install kvfoot again" if folder in SHIPPED.values() else cure
    if not (folder / "config.json").is_file():
        other = next(iter(sorted(folder.glob("*.gguf"))), None)
        raise ModelError(f"{folder}: no config.json: give {other or 'a folder that save_pretrained wrote'}")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError) as error:
            raise ModelError(f"{index}: damaged: {cure}") from error
    else:
        shards = sorted(path.name for path in folder.glob("*.safetensors"))
        if not shards and not any(folder.glob("*.bin")):
            raise ModelError(f"{folder}: no weights (*.safetensors): {cure}")
    for shard in shards:
        if not (folder / shard).is_file():
            raise ModelError(f"{folder}: shard {shard} is missing: {cure}")
        size = (folder / shard).stat().st_size
        try:
            needed = _safetensors_size(folder / shard)
        except (ValueError, KeyError, struct.error) as error:
            raise ModelError(f"{folder / shard}: no safetensors file, or cut in its header: {cure}") from error
        if size < needed:
            raise ModelError(f"{folder / shard}: truncated, {size:,} bytes of {needed:,}: {cure}")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{folder}: no tokenizer.json: save the tokenizer into the same folder")


def _safetensors_size(path: Path) -> int:
    """Bytes that a safetensors file must have, by its header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            return int(length) + 8
        head = json.loads(file.read(length))
    return 8 + int(length) + max((entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__"))


def fingerprint(folder: Path) -> str:
    """A name for the contents of a model folder, in milliseconds: SHA-256 over config, index and tokenizer, and of each
    weight file the size, the first and the last 64 KiB. Equal contents give equal names; no proof against forgery."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name in ("config.json", "model.safetensors.index.json", "tokenizer.json"):
            digest.update(path.read_bytes())
        elif path.suffix in (".safetensors", ".bin"):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 16))
                file.seek(max(0, size - (1 << 16)))
                digest.update(file.read())
    return digest.hexdigest()


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError(f"device {device!r}{did_you_mean(device, ['auto', 'cpu', 'cuda', 'cuda:0'])}")
    if device != "cpu" and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device!r}: there are {torch.cuda.device_count()} CUDA devices here: use cpu or auto")
    return device


def _dtype(dtype: "str | torch.dtype", device: str) -> "torch.dtype":
    import torch

    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype == "auto":
        return torch.bfloat16 if device != "cpu" or _cpu_has_bf16() else torch.float32
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}{did_you_mean(dtype, ['auto', *DTYPES])}")
    found: torch.dtype = getattr(torch, DTYPES[dtype])
    return found


def _cpu_has_bf16() -> bool:
    """bf16 is 3 times as fast as fp32 where the processor has instructions for it, and slower elsewhere."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool(re.search(r"\b(amx_bf16|avx512_bf16)\b", flags))


def _unreachable() -> bool:
    """Whether the hub's host has no address here: then only its local cache is asked, without half a minute of retries.
    Behind a proxy that cannot be known, and the hub is asked."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub.constants import ENDPOINT

    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


@contextmanager
def _one_line(name: str, source: Source) -> Iterator[None]:
    """What transformers and the hub raise, often a page, as one line with the cure."""
    try:
        yield
    except ModelError:
        raise
    except UsageError as error:
        raise ModelError(f"{name}: {error}") from error
    except Exception as error:
        known = (OSError, ValueError, KeyError, ImportError, RuntimeError)
        if not isinstance(error, known) and type(error) is not Exception:  # the bare class comes from tokenizers
            raise
        reason = next((line.strip(" .:") for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if source != "hub":
            raise ModelError(f"{name}: transformers cannot load it ({reason}): save or download it again") from error
        hint = "" if "/" in name else did_you_mean(name, list(ALIASES))
        cure = "unset HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "check the name and the connection"
        raise ModelError(f"{name}: not loaded from the hub{hint} ({reason}): {cure}, or give a local folder") from error


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws a bar for every load; whoever wants progress passes `on_event`."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
