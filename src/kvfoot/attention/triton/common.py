"""What the kernels share: tile helpers, launch figures, and what they refuse.

Legend: R rows, H (`G` inside kernels) query heads per row, D head size, DP the next power of two, n queries,
m entries, BN entries and BM queries per tile. Logits are kept in base 2 inside a kernel; every lse that leaves one is
a natural logarithm.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from kvfoot.core.errors import UsageError

INTERPRET = bool(knobs.runtime.interpret)
"""Kernels run in Triton's interpreter, on the CPU (TRITON_INTERPRET=1 when triton is imported)."""
LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
HEAD_SIZES = (64, 80, 96, 128, 256)
PAGE_SIZES = (1, 16, 32, 64)
"""1: a list of slots is a table of pages of one entry."""
GROUP = 16
"""Most query heads per row: one tile of the tensor core."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
OLDEST = (8, 0)
"""Compute capability: before it tensor cores have no bf16, and programs less shared memory than any tile here takes."""
SHARED = {128: 96 * 1024, 256: 104 * 1024}
"""Bytes of shared memory of the largest program, chunk_prefill's, by the greatest head size that it serves."""


@dataclass(frozen=True)
class Launch:
    """How a kernel is compiled: entries and queries per tile, warps, pipeline stages, programs per multiprocessor.

    registers: most that a thread may take, where per_sm programs would not be resident with more.
    """

    entries: int
    warps: int
    stages: int
    queries: int = 0
    per_sm: int = 1
    registers: int | None = None


@triton.jit
def fetch(pointer, offset_N, ok_N, D: tl.constexpr, DP: tl.constexpr, UPCAST: tl.constexpr):
    """Rows of D values at offset_N: [N, DP], zero where not ok."""
    d = tl.arange(0, DP)
    if D == DP:
        x = tl.load(pointer + offset_N[:, None] + d[None, :], mask=ok_N[:, None], other=0.0)
    else:
        x = tl.load(pointer + offset_N[:, None] + d[None, :], mask=ok_N[:, None] & (d[None, :] < D), other=0.0)
    if UPCAST:  # the interpreter's bf16 arithmetic is garbage; on a GPU fp32 operands would mean TF32
        x = x.to(tl.float32)
    return x


@triton.jit
def page_of(table, j, ok, PAGE: tl.constexpr):
    """Pages of entries j, int32; a tile ahead of its use, or the pipeliner keeps one buffer of keys only."""
    if PAGE == 0:
        return j
    else:
        return tl.load(table + j // PAGE, mask=ok, other=0)


@triton.jit
def offset_of(page, at, i, pitch, PAGE: tl.constexpr, BN: tl.constexpr):
    """Element offsets of entries at + i, int64: arenas hold more than 2^31 elements. `at` is a multiple of BN."""
    if PAGE == 0:  # no pages: an entry's number itself
        return (at + i).to(tl.int64) * pitch
    elif BN % PAGE == 0:  # the place in a page is the same in every tile
        return (page.to(tl.int64) * PAGE + i % PAGE) * pitch
    else:
        return (page.to(tl.int64) * PAGE + (at + i) % PAGE) * pitch


@triton.jit
def join(m, l, s):
    """One step of the running softmax over a tile of base-2 logits s: maximum, share of the old, weights, sum.

    A query may have seen nothing so far: its maximum is -inf.
    """
    m_new = tl.maximum(m, tl.max(s, 1))
    base = tl.where(m_new == -float("inf"), 0.0, m_new)
    share = tl.exp2(m - base)
    p = tl.exp2(s - base[:, None])
    return m_new, share, p, l * share + tl.sum(p, 1)


@triton.jit
def rounded(x, kind: tl.constexpr, EMULATE: tl.constexpr):
    """fp32 x to the nearest value of dtype `kind`, ties to even, in fp32 again."""
    if kind == tl.float32:
        return x
    elif EMULATE and kind == tl.bfloat16:  # the interpreter cuts the bits off
        u = x.to(tl.uint32, bitcast=True)
        near = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16) << 16
        return tl.where(x == x, near.to(tl.float32, bitcast=True), x)  # noqa: PLR0124
    else:
        return x.to(kind).to(tl.float32)


def padded(size: int, least: int = 16) -> int:
    return max(least, triton.next_power_of_2(size))


def precision(dtype: torch.dtype, head_size: int) -> str:
    """Of products of fp32 operands: three TF32 products on a GPU, which come close to fp32; for wide heads their
    registers spill, and fp32 it is. One TF32 product, Triton's default, is off by 1e-3."""
    return "tf32x3" if dtype == torch.float32 and head_size <= 128 and not INTERPRET else "ieee"


def upcast(dtype: torch.dtype) -> bool:
    return INTERPRET and dtype != torch.float32


def result(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for a kernel's output; fp32 under the interpreter, whose stores truncate."""
    return scratch(shape, torch.float32 if INTERPRET else dtype, device)


def scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory; every kernel writes what it reads."""
    return torch.empty(shape, dtype=dtype, device=device)


@cache
def multiprocessors(device: torch.device) -> int:
    return 2 if INTERPRET else int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def outgrown(device: torch.device, head_size: int) -> str | None:
    """Why the kernels cannot serve a GPU, None if they can."""
    if torch.version.hip:
        return "serves NVIDIA's GPUs, not AMD's"
    p: Any = torch.cuda.get_device_properties(device)
    if (p.major, p.minor) < OLDEST:
        return f"serves GPUs of compute capability {'.'.join(map(str, OLDEST))} or newer, not {p.major}.{p.minor}"
    need = next(size for most, size in SHARED.items() if head_size <= most)
    found = getattr(p, "shared_memory_per_block_optin", need)  # older versions of torch do not tell
    if found < need:
        return f"needs {need // 1024} KiB of shared memory at head size {head_size}, this GPU has {found // 1024}"
    return None


def refuse(dtype: torch.dtype, head_size: int, group: int, page_size: int | None, device: torch.device) -> str | None:
    """Why the kernels cannot serve a case, None if they can."""
    if device.type != "cuda" and not INTERPRET:
        return f"runs on cuda, not on {device.type} (TRITON_INTERPRET=1 interprets it there, for tests)"
    if dtype not in DTYPES:
        return f"serves {', '.join(str(x).removeprefix('torch.') for x in DTYPES)}, not {dtype}"
    if head_size not in HEAD_SIZES:
        return f"serves head sizes {', '.join(map(str, HEAD_SIZES))}, not {head_size}"
    if not 1 <= group <= GROUP:
        return f"serves 1 to {GROUP} query heads per KV head, not {group}"
    if page_size is not None and page_size not in PAGE_SIZES:
        return f"serves pages of {', '.join(map(str, PAGE_SIZES))} entries, not {page_size}"
    return outgrown(device, head_size) if device.type == "cuda" else None


def check(q: Tensor, k: Tensor, page_size: int | None, group: int = 1) -> None:
    """Raise UsageError for a case that the kernels cannot serve. q [..., D], k [..., D]."""
    reason = refuse(k.dtype, k.shape[-1], group, page_size, k.device)
    if reason is None and q.dtype != k.dtype:
        reason = f"needs queries in the cache's dtype {k.dtype}, not {q.dtype}"
    if reason is not None:
        raise UsageError(f"the triton backend {reason}: use the sdpa backend")


def pages(*planes: Tensor) -> None:
    """Raise UsageError unless the planes are whole arenas: pages are addressed, not strides."""
    for plane in planes:
        if not plane.is_contiguous():
            raise UsageError(f"pages must be contiguous, not strides {plane.stride()}: pass the arena itself")


def narrow(table: Tensor) -> Tensor:
    """Page numbers in int32, converted if they are not: 8-byte ones are copied ahead themselves, in place of keys."""
    return table if table.dtype == torch.int32 else table.int()


def unit(x: Tensor) -> Tensor:
    """x with its last dimension contiguous, copied only if it is not."""
    return x if x.stride(-1) == 1 else x.contiguous()
