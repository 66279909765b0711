"""What the compiler makes of the kernels for an H100, on any machine: no spills, programs that fit, wide loads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfoot.attention.triton import decode

SHARED = 227 * 1024
"""Bytes of shared memory that the programs of a multiprocessor have; one kibibyte of each is the system's."""
REGISTERS = 65536
EVERY = [
    "decode", "emit", "read", "refresh", "chunk", "dense", "stream", "columns", "window", "append", "compact", "layer",
    "evict", "join", "bounds",
]  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"head_size": 128, "group": 4, "page_size": 16, "dtype": "bfloat16", "ops": EVERY},
    {"head_size": 80, "group": 5, "page_size": 64, "dtype": "float16", "ops": ["emit", "patch", "layer", "join"]},
    {"head_size": 256, "group": 16, "page_size": 16, "dtype": "bfloat16", "ops": ["emit", "refresh", "stream"]},
    {"head_size": 256, "group": 2, "page_size": 16, "dtype": "float32", "ops": ["decode", "stream", "bounds"]},
    {"head_size": 64, "group": 4, "page_size": 32, "dtype": "float32", "ops": ["read", "refresh", "layer", "bounds"]},
    {"head_size": 64, "group": 7, "page_size": 16, "dtype": "bfloat16", "ops": ["emit", "bounds"]},
]


LOADING = ("decode_kernel", "scan_kernel", "chunk_prefill_kernel", "stream_prefill_kernel", "window_lse_kernel")


@pytest.fixture(scope="module")
def binaries() -> list[dict[str, Any]]:
    script = Path(__file__).parent / "sm90.py"
    quiet = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, json.dumps(CASES)], capture_output=True, text=True, check=False, env=quiet
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_without_spills(binaries: list[dict[str, Any]]) -> None:
    seen = {b["kernel"] for b in binaries}
    assert len(seen) == 30, seen
    for b in binaries:
        assert b["stack"] == 0, b
        assert b["registers"] <= 255, b
        assert b["shared"] <= SHARED - 1024, b


def test_the_planned_decode_programs_are_resident_at_once(binaries: list[dict[str, Any]]) -> None:
    """Equal shares are equal times only if all run together: registers in steps of 8, 32 threads a warp."""
    found = [b for b in binaries if b["kernel"] in ("decode_kernel", "scan_kernel")]
    assert len(found) == 14
    for b in found:
        head_size, dtype = int(b["case"].split()[0][1:]), getattr(torch, b["case"].split()[-1])
        how = decode.launch(head_size, dtype)
        registers = -(-b["registers"] // 8) * 8 * 32 * how.warps
        assert how.per_sm * registers <= REGISTERS, (b, how)
        assert how.per_sm * (b["shared"] + 1024) <= SHARED + 1024, (b, how)


def test_two_programs_of_a_choice_are_resident_at_once(binaries: list[dict[str, Any]]) -> None:
    """A layer of eight rows of 128K is 264 of them. Weights that were stored are read sixteen bytes at a time; logits
    word by word by neighbouring threads, which a layout that they do not share with the exchange would take barriers.
    """
    found = [b for b in binaries if b["kernel"].removesuffix("_kernel") in ("keys", "narrow", "bracket", "place")]
    assert len(found) >= 4
    for b in found:
        assert b["registers"] <= 128, b
        if b["kernel"] == "keys_kernel":
            assert b["barriers"] <= 8, b
        else:
            assert b["wide"] >= 4, b


def test_keys_come_by_asynchronous_copies_into_as_many_buffers_as_asked_for(binaries: list[dict[str, Any]]) -> None:
    """16 bytes at a time. The page-table load is hoisted: with it in the iteration there would be one buffer."""
    for b in binaries:
        if b["kernel"] in LOADING:
            assert b["loads"] > 0, b
        if b["kernel"] in ("decode_kernel", "scan_kernel"):
            head_size, dtype = int(b["case"].split()[0][1:]), getattr(torch, b["case"].split()[-1])
            how = decode.launch(head_size, dtype)
            width = 1 << (head_size - 1).bit_length()
            assert b["shared"] >= 2 * (how.stages - 1) * how.entries * width * dtype.itemsize, b


def test_products_of_half_precision_run_on_the_tensor_cores(binaries: list[dict[str, Any]]) -> None:
    with_products = ("decode", "scan", "chunk_prefill", "stream_prefill", "column_scores", "window_lse")
    for b in binaries:
        if b["kernel"].removesuffix("_kernel") in with_products and "float32" not in b["case"]:
            assert b["multiplies"] > 0, b


def test_rotations_round_where_the_model_does(binaries: list[dict[str, Any]]) -> None:
    """Products and their sum apart; in bf16 each goes through bf16. The kernels of a layer take few registers."""
    found = [b for b in binaries if b["kernel"] == "store_kernel"]
    assert len(found) == 6  # with RoPE and without, in three dtypes
    for b in found:
        assert b["fused"] == 0, b
    assert sorted(b["rounded"] > 0 for b in found) == [False] * 5 + [True]
    for name in ("rms_norm_kernel", "gated_kernel"):
        some = [b for b in binaries if b["kernel"] == name]
        assert len(some) >= 3
        assert all((b["rounded"] > 0) == ("bfloat16" in b["case"]) for b in some)
    assert all(b["registers"] <= 64 for b in binaries if b["kernel"] in ("store_kernel", "gated_kernel"))


def test_weights_are_streamed_sixteen_bytes_at_a_time(binaries: list[dict[str, Any]]) -> None:
    """Eight loads of a thread under way, and four such programs on a multiprocessor."""
    found = [b for b in binaries if b["kernel"] in ("project_kernel", "gated_project_kernel")]
    assert len(found) == 6
    for b in found:
        matrices = 3 if b["kernel"] == "project_kernel" else 2
        assert b["wide"] >= 8 * matrices, b
        assert 4 * -(-b["registers"] // 8) * 8 * 32 * 4 <= REGISTERS, b


def test_bounds_are_read_sixteen_bytes_at_a_time(binaries: list[dict[str, Any]]) -> None:
    """Both of a tile's at once, in registers: several programs of a multiprocessor keep loads under way."""
    found = [b for b in binaries if b["kernel"] == "reach_kernel"]
    assert len(found) == 8
    for b in found:
        assert b["wide"] >= 16, b
        assert b["registers"] <= 168 or "float32" in b["case"], b  # three TF32 products take more


def test_importing_the_package_imports_no_gpu_library() -> None:
    code = "import sys, kvfoot, kvfoot.attention.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
