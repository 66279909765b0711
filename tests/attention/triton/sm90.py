"""Compiles what the wrappers launch, for an H100 and without one, and reads the budgets off the machine code.

A script of its own: kernels that are to be compiled must not have been imported under the interpreter. Each wrapper is
called on tensors without memory; a launch becomes a compilation for sm_90, with the types and the divisibility that the
arguments have. Prints one JSON object a line: case, kernel, registers, stack, shared (bytes), loads (16-byte
asynchronous copies), multiplies (tensor core instructions), wide (16-byte loads), fused (products and sums in one),
rounded (fp32 to bf16, to nearest even), barriers.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvfoot.attention import rings as made_rings
from kvfoot.attention.naive_layer import Target, Turn
from kvfoot.attention.state import Least, State
from kvfoot.attention.triton import (
    append,
    bounds,
    chunk_prefill,
    column_scores,
    common,
    compact,
    decode,
    emitted,
    gated,
    join,
    locate,
    merge,
    plan,
    project,
    replace,
    rings,
    rms_norm,
    scan,
    select,
    store,
    stream_prefill,
    tally,
    topk,
    vote,
    window_scores,
)

SM_90 = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.bool: "*i1",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
seen: set[str] = set()
KERNELS: dict[str, ModuleType] = {
    "append_kernel": append,
    "compact_kernel": compact,
    "replace_kernel": replace,
    "tally_kernel": tally,
    "plan_kernel": plan,
    "decode_kernel": decode,
    "join_kernel": join,
    "locate_kernel": locate,
    "merge_kernel": merge,
    "scan_kernel": scan,
    "lse_kernel": scan,
    "keys_kernel": select,
    "narrow_kernel": topk,
    "bracket_kernel": topk,
    "place_kernel": topk,
    "mass_kernel": vote,
    "vote_kernel": vote,
    "push_kernel": rings,
    "refill_kernel": rings,
    "reach_kernel": bounds,
    "widen_kernel": bounds,
    "chunk_prefill_kernel": chunk_prefill,
    "stream_prefill_kernel": stream_prefill,
    "column_scores_kernel": column_scores,
    "window_lse_kernel": window_scores,
    "rms_norm_kernel": rms_norm,
    "gated_kernel": gated,
    "store_kernel": store,
    "project_kernel": project,
    "gated_project_kernel": project,
}


def compiled(kernel: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The kernel as Triton's launcher would specialise it for these arguments; None if that was compiled before."""
    options = {x: named.pop(x) for x in OPTIONS if x in named}
    values = dict(zip(kernel.arg_names, given, strict=False)) | named
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    key = f"{source.hash()} {options}"
    if key in seen:
        return None
    seen.add(key)
    return triton.compile(source, target=SM_90, options=options)


def budgets(binary: Any) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(binary.asm["cubin"])
    try:
        run = lambda *x: subprocess.run(x, capture_output=True, text=True, check=True).stdout  # noqa: E731
        usage = dict(re.findall(r"(REG|STACK):(\d+)", run(TOOLS / "cuobjdump", "-res-usage", file.name)))
    finally:
        os.unlink(file.name)
    ptx = binary.asm["ptx"]
    return {
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "shared": binary.metadata.shared,
        "loads": len(re.findall(r"cp\.async\.cg\.shared\.global .*0x10", ptx)),
        "multiplies": len(re.findall(r"mma\.sync|wgmma\.mma_async", ptx)),
        "wide": len(re.findall(r"ld\.global\.v4\.b32", ptx)),
        "fused": len(re.findall(r"fma\.rn\.(?:f32|f16|bf16)", ptx)),
        "rounded": len(re.findall(r"cvt\.rn\.bf16", ptx)),
        "barriers": len(re.findall(r"bar\.sync", ptx)),
    }


@contextmanager
def recording(case: str) -> Iterator[None]:
    """Launches print their budgets in place of running."""

    class Recorder:
        def __init__(self, name: str, kernel: Any):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*given: Any, **named: Any) -> None:
                binary = compiled(self.kernel, given, dict(named))
                if binary is not None:
                    print(json.dumps({"case": case, "kernel": self.name, **budgets(binary)}), flush=True)

            return launch

    real = {name: getattr(module, name) for name, module in KERNELS.items()}
    for name, module in KERNELS.items():
        setattr(module, name, Recorder(name, real[name]))
    try:
        yield
    finally:
        for name, module in KERNELS.items():
            setattr(module, name, real[name])


def build(ops: list[str], head_size: int, group: int, page_size: int, dtype: torch.dtype) -> None:
    case = f"D{head_size} G{group} page{page_size} {str(dtype).removeprefix('torch.')}"
    meta = lambda *shape, kind=dtype: torch.empty(shape, dtype=kind, device="meta")  # noqa: E731
    rows, width, n = 8, 4096, 2048
    k = meta(width, page_size, head_size)
    table, lens = meta(rows, 64, kind=torch.int32), meta(rows, kind=torch.int32)
    q, one = meta(rows, group, n, head_size), meta(rows, group, head_size)
    with recording(case):
        if "decode" in ops:
            decode.decode(one, k, k, table, lens, 0.1)
        if "emit" in ops:
            decode.decode_emitting(one, k, k, table, lens, 0.1, width)
        if "read" in ops:
            decode.decode(one, k, k, table, lens, 0.1, read_RK=meta(rows, 64, kind=torch.int32))
        if "refresh" in ops:
            for values in (True, False):
                _, found = emitted.emitted(one, k, k, table, lens.long(), 0.1, None, values)
                chosen = found.best(512, 7, "max", 0, 64)
                found.vote(1, 128, 512, 2048)
            ring = made_rings.Rings.empty(2, rows, 513, chosen.device)
            rings.push(ring, meta(2, rows, kind=torch.int64), meta(2, rows, kind=torch.int64))
            fired, own = meta(rows, kind=torch.bool), meta(rows, kind=torch.int64)
            rings.refill(ring, 0, own, chosen, fired, table, page_size)
        if "bounds" in ops:
            for mean in (True, False):
                bounds.reach(one, meta(rows, 8192, head_size), meta(rows, 8192, head_size), lens.long(), 16, mean)
            low, long = meta(rows, 8192, head_size), meta(rows, kind=torch.int64)
            bounds.widen(low, low, k, long, long, 16)
        if "chunk" in ops:
            chunk_prefill.chunk_prefill(q, k, k, table, lens, 0.1, True)
        if "patch" in ops:
            chunk_prefill.chunk_prefill(q[:, :, :16], k, k, table, lens, 0.1, False)
        if "dense" in ops:
            dense = meta(rows, width, head_size)
            chunk_prefill.chunk_prefill(q, dense, dense, None, None, 0.1, True)
        if "stream" in ops:
            stream_prefill.stream_prefill(q, k, k, table, lens, 0.1, 128, 1024)
        if "columns" in ops:
            column_scores.column_scores(q, k, table, lens, meta(rows, group, n, kind=torch.float32), 0.1, width)
        if "window" in ops:
            window_scores.window_scores(q[:, :, :32], k, table, lens, 0.1, width)
        if "join" in ops:
            turned = meta(n, rows, group, head_size).permute(1, 2, 0, 3)
            part = State(turned, meta(rows, group, n, kind=torch.float32))
            join.join(State(turned.float(), part.lse), part, dtype)
        if "append" in ops:
            append.append((k, k), table, lens, (q[:, 0, :1], q[:, 0, :1]))
        if "layer" in ops:
            x, heads = meta(1, 3, group * head_size * rows), meta(1, rows, 3, head_size)
            for first in (True, False):
                rms_norm.rms_norm(x, x[0, 0], 1e-5, round_first=first)
            gated.gated(x, x)
            token, wide = meta(1, 1, 4096), meta(14336, 4096)
            project.project(token, (meta(4096, 4096), meta(1024, 4096), meta(1024, 4096)), None)
            project.gated_project(token, wide, wide)
            queries = meta(1, rows * group, 3, head_size)
            places, target = meta(3 * rows, kind=torch.int64), Target(k, k, meta(width, page_size, 1, kind=torch.int32))
            angles = meta(1, 3, head_size)
            for turn in (Turn(angles, angles), None):
                store.store(queries, heads, heads, turn, places, places[:3], target)
        if "compact" in ops:
            compact.compact((k, k), table, meta(rows, 512, kind=torch.int64), lens, table)
        if "evict" in ops:
            mass, numbers = (meta(width, page_size, w, kind=x) for w, x in ((1, torch.float32), (1, torch.int32)))
            each, slots = meta(width, page_size, group, kind=torch.float32), meta(rows, kind=torch.int64)
            score, lse = (meta(rows, group, m, kind=torch.float32) for m in (16000, 1))
            for plane, unit in ((mass, 1), (each, 1), (None, rows)):
                least = tally.tally(score, lse[..., 0], table, slots, slots, slots, numbers, plane, plane is mass, unit)
                replace.replace([k, k, numbers, mass if plane is None else plane], table, slots, slots, least)
            replace.replace([k, k, numbers], table, slots, slots, Least.of(score[:, 0]))
            replace.move([k, k], slots, slots)


def main() -> None:
    common.check = lambda *_, **__: None  # the device of tensors without memory is refused
    common.multiprocessors = lambda _: 132
    torch.Tensor.logsumexp = lambda x, *_: x[:, 0]  # of window_scores; not needed for its launches
    for case in json.loads(sys.argv[1]):
        build(case["ops"], case["head_size"], case["group"], case["page_size"], getattr(torch, case["dtype"]))


if __name__ == "__main__":
    main()
