"""A kept cache in one safetensors file, independent of pages.

header   JSON under the metadata key "kvfoot"; its field `format` is the version of this layout
NAME.indptr          int64 [rows + 1]: entries indptr[r] .. indptr[r + 1] are row r's (layer x kv_heads + head)
NAME.k, NAME.v       [entries, head_dim], rows one after the other, entries in slot order
NAME.plane.PLANE     [entries, width]
NAME.shared          int64 [rows], where another sequence's first entries are this one's too: they are stored once
"""

import json
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.cache.kv import KVCache
from kvfoot.cache.rows import Rows
from kvfoot.core.errors import KvfootError, UsageError

FORMAT = 2
KEY = "kvfoot"
Tensors = dict[str, Tensor]


def write(path: Path, header: dict[str, Any], tensors: Tensors) -> None:
    """Whole or not at all. Raises KvfootError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}: make it first")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the name of a file in it")
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        save_file(tensors, temporary, {KEY: json.dumps({"format": FORMAT, **header})})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise KvfootError(f"{path} was not written ({error}): free some space or give another place") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def read_header(path: Path) -> dict[str, Any]:
    """The header, without loading a tensor. Raises UsageError: no file, none of ours, truncated, a newer version."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            head = json.loads(file.read(length)) if length <= size else None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: give a file that a session was saved to") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        head = None
    if not isinstance(head, dict) or KEY not in head.get("__metadata__", {}):
        raise UsageError(f"{path}: not a saved cache, or cut in its header: save the session again")
    needed = 8 + length + max(entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__")
    if size != needed:
        raise UsageError(f"{path}: truncated, {size:,} bytes of {needed:,}: save the session again")
    header: dict[str, Any] = json.loads(head["__metadata__"][KEY])
    if header["format"] != FORMAT:
        raise UsageError(
            f"{path}: format {header['format']}, this kvfoot reads {FORMAT}: update kvfoot, or save the session again"
        )
    return header


def read(path: Path) -> Tensors:
    """All tensors, on the CPU, mapped from the file."""
    from safetensors.torch import load_file

    found: Tensors = load_file(path)
    return found


@torch.inference_mode()
def pack(cache: KVCache, rows: Rows, base: Rows | None = None) -> Tensors:
    """A sequence's entries; with `base`, without those in pages that both have from the beginning on."""
    pool, geometry = cache.pool, cache.geometry
    shared = np.zeros((geometry.layers, geometry.kv_heads), np.int64)
    if base is not None:
        for layer, head in np.argwhere(shared == 0).tolist():
            ours, theirs = rows.pages[layer][head], base.pages[layer][head]
            same = min(len(ours), len(theirs))
            differ = np.flatnonzero(ours[:same] != theirs[:same])
            pages = int(differ[0]) if differ.size else same
            most = min(int(rows.lens[layer, head]), int(base.lens[layer, head]))
            shared[layer, head] = min(pages * pool.page_size, most)
    indptr = np.concatenate([[0], np.cumsum((rows.lens - shared).ravel())])
    total = int(indptr[-1])
    out = {name: torch.empty(total, pool.head_dim, dtype=pool.dtype) for name in "kv"}
    out |= {f"plane.{n}": torch.zeros(total, p.shape[2], dtype=p.dtype) for n, p in pool.planes.items()}
    for layer in range(geometry.layers):
        for heads, b in cache.blocks(rows, layer):
            if not b:
                continue
            k, v = cache.history(rows, layer, heads)
            values = {"k": k, "v": v}
            values |= {f"plane.{n}": x for n, x in _planes(cache, rows, layer, heads)}
            for i, head in enumerate(heads):
                row, first = layer * geometry.kv_heads + head, int(shared[layer, head])
                for name, value in values.items():
                    out[name][indptr[row] : indptr[row + 1]] = value[i, first:].cpu()
    return out | {"indptr": torch.from_numpy(indptr), "shared": torch.from_numpy(shared.ravel().copy())}


def _planes(cache: KVCache, rows: Rows, layer: int, heads: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """Planes of a layer: one with a window of its own has none."""
    if cache.geometry.window(layer) is None:
        for name in cache.pool.planes:
            yield name, cache.plane(rows, layer, heads, name)


def check(cache: KVCache, tensors: Tensors, base: Tensors | None = None) -> None:
    """Raises ValueError where tensors do not fit each other or the cache."""
    pool, count = cache.pool, cache.geometry.rows
    indptr, shared = tensors["indptr"], tensors["shared"]
    expected = {"k": (pool.dtype, pool.head_dim), "v": (pool.dtype, pool.head_dim)}
    expected |= {f"plane.{n}": (p.dtype, p.shape[2]) for n, p in pool.planes.items()}
    lengths = {tuple(tensors[name].shape) == (int(indptr[-1]), width) for name, (_, width) in expected.items()}
    kinds = {tensors[name].dtype == dtype for name, (dtype, _) in expected.items()}
    if len(indptr) != count + 1 or len(shared) != count or indptr[0] or bool((indptr.diff() < 0).any()):
        raise ValueError("rows")
    if lengths != {True} or kinds != {True}:
        raise ValueError("entries")
    most = base["indptr"].diff() if base is not None else torch.zeros(count, dtype=torch.int64)
    if bool((shared > most).any()):
        raise ValueError("shared entries")


@torch.inference_mode()
def unpack(cache: KVCache, tensors: Tensors, base: tuple[Rows, Tensors] | None = None) -> Rows:
    """A sequence of its own with these entries; its first ones in pages of `base` where they are whole pages there."""
    pool, geometry = cache.pool, cache.geometry
    rows = cache.open()
    indptr, shared = tensors["indptr"].tolist(), tensors["shared"].tolist()
    names = ["k", "v", *(f"plane.{n}" for n in pool.planes)]
    for row in range(geometry.rows):
        layer, head = divmod(row, geometry.kv_heads)
        own = {name: tensors[name][indptr[row] : indptr[row + 1]] for name in names}
        if base is not None:
            first, at = shared[row] // pool.page_size, base[1]["indptr"][row]
            rest = {n: base[1][n][at + first * pool.page_size : at + shared[row]] for n in names}
            own = {name: torch.cat([rest[name], value]) for name, value in own.items()}
            rows.pages[layer][head] = base[0].pages[layer][head][:first].copy()
            rows.lens[layer, head] = first * pool.page_size
            pool.share(rows.pages[layer][head])
            rows.forked = base[0].forked = True
        k, v, *planes = (value[None].to(pool.device) for value in own.values())
        if k.shape[1]:
            cache.append(rows, layer, (head,), k, v, dict(zip(pool.planes, planes, strict=True)))
    return rows
