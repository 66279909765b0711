"""The kernels on a GPU against their definitions: called by kernels.py, one process a case, as compiling is slow.

An error is |x - exact| / |exact| in the 2-norm, exact being naive_paged's on the same inputs in fp32. It may be twice
that of torch's own attention in the same precision. Scratch, outputs, slack and pages of nobody hold NaN.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from kvfoot.attention import naive_paged as naive
from kvfoot.attention.triton import common
from kvfoot.attention.triton.append import append
from kvfoot.attention.triton.chunk_prefill import chunk_prefill
from kvfoot.attention.triton.column_scores import column_scores
from kvfoot.attention.triton.common import Launch
from kvfoot.attention.triton.compact import compact
from kvfoot.attention.triton.decode import decode, decode_emitting, planned
from kvfoot.attention.triton.stream_prefill import stream_prefill
from kvfoot.attention.triton.window_scores import window_scores

SINK, WINDOW = 128, 300


def poison() -> None:
    plain = common.scratch

    def scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        room = plain(shape, dtype, device)
        return room.fill_(torch.nan if dtype.is_floating_point else -(1 << 30))

    common.scratch = scratch


class Rows:
    """Ragged rows in an arena whose first `skip` pages are nobody's and stay unwritten."""

    def __init__(
        self, lens: list[int], head_size: int, group: int, page: int, dtype: torch.dtype, n: int, skip: int = 0
    ):
        torch.manual_seed(sum(lens) + head_size + group + page)
        rows, width = len(lens), max(-(-m // page) for m in lens) + 1
        self.pages = rows * width + 2
        order = skip + torch.randperm(self.pages)
        self.arena = torch.empty(2, skip + self.pages, page, head_size, dtype=dtype, device="cuda")
        self.arena[:, skip:] = torch.nan
        self.table = order[: rows * width].view(rows, width).int().cuda()
        for r, m in enumerate(lens):
            at = torch.arange(m, device="cuda")
            for x in self.arena:
                x[self.table[r].long()[at // page], at % page] = torch.randn(m, head_size, device="cuda").to(dtype)
            self.table[r, -(-m // page) :] = int(order[-1])
        self.lens = torch.tensor(lens, dtype=torch.int32, device="cuda")
        self.q = (2 * torch.randn(rows, group, n, head_size, device="cuda")).to(dtype)
        self.scale, self.most, self.n = head_size**-0.5, max(lens), n

    @property
    def paged(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.arena[0], self.arena[1], self.table, self.lens


def error(found: Tensor, exact: Tensor) -> float:
    finite = torch.isfinite(exact)
    if not torch.equal(torch.isfinite(found), finite):
        return float("inf")
    gap = (found.double() - exact.double())[finite].norm() / exact.double()[finite].norm().clamp(min=1e-30)
    return float(gap)


def torch_attention(
    x: Rows, q: Tensor, causal: bool, sink: int = 0, window: int | None = None, read: list[Tensor] | None = None
) -> Tensor:
    """torch's own, row by row, in the rows' precision; over the entries `read` of each row where given."""
    out = torch.zeros_like(q)
    n = q.shape[2]
    for r, at in enumerate(read or [torch.arange(m, device="cuda") for m in x.lens.tolist()]):
        if m := len(at):
            k, v = (naive.entries(p, x.table[r], at).expand(q.shape[1], m, -1) for p in x.arena)
            zero = torch.zeros(1, 1, n, m, device="cuda")
            mask = zero.masked_fill(~torch.ones(n, m, dtype=torch.bool, device="cuda").tril(m - n), -torch.inf)
            mask = naive.masked(mask, sink, window)[0, 0] if causal else zero[0, 0]
            out[r] = sdpa(q[r], k, v, attn_mask=mask.to(q.dtype), scale=x.scale).nan_to_num(0.0)
    return out


def torch_weights(x: Rows, q: Tensor, width: int) -> Tensor:
    """Column sums from logits in the rows' precision."""
    R, H, n, _ = q.shape
    found = torch.zeros(R, H, width, device="cuda")
    for r, m in enumerate(x.lens.tolist()):
        if m:
            k = naive.entries(x.arena[0], x.table[r], torch.arange(m, device="cuda"))
            s = (q[r] * x.scale @ k.mT).float()
            s = s.masked_fill(~torch.ones(n, m, dtype=torch.bool, device="cuda").tril(m - n), -torch.inf)
            found[r, :, :m] = s.softmax(-1).nan_to_num(0.0).sum(-2)
    return found


def operations(head_size: int, group: int, page: int, dtype: str, skip: int = 0) -> list[dict[str, Any]]:
    """Every kernel for one shape: op, error, torch's error, ok."""
    poison()
    kind = getattr(torch, dtype)
    x = Rows([1, page - 1, page, page + 1, 0, 700, 2049, 300], head_size, group, page, kind, 40, skip)
    one, table = x.q[:, :, 0].contiguous(), x.paged
    width = x.most + 3
    found: list[dict[str, Any]] = []
    case = f"D{head_size} G{group} page{page} {dtype}" + (" >2^31" if skip else "")

    def judge(op: str, mine: Tensor, exact: Tensor, theirs: Tensor | float, floor: float = 1e-6) -> None:
        gap = error(mine, exact)
        limit = theirs if isinstance(theirs, float) else error(theirs, exact)
        found.append({"case": case, "op": op, "error": gap, "torch": limit, "ok": gap <= 2 * limit + floor})

    exact = naive.decode(one, *table, x.scale)
    theirs = torch_attention(x, one[:, :, None], False)[:, :, 0]
    state, weights = decode_emitting(one, *table, x.scale, width)
    quiet = decode(one, *table, x.scale)
    judge("decode", quiet.out, exact.out, theirs)
    judge("decode lse", quiet.lse, exact.lse, 1e-5)
    judge("decode emitting", state.out, exact.out, theirs)
    judge("weights", weights, naive.weights(one, table[0], x.table, x.lens, x.scale, width), 1e-4)
    counts = (x.lens // 3).int()
    read = torch.stack([torch.randperm(int(m) or 1).repeat(2100)[:700] for m in x.lens]).int().cuda()
    listed = naive.decode(one, *table[:3], counts, x.scale, read)
    some = [read[r, :c].long() for r, c in enumerate(counts.tolist())]
    theirs = torch_attention(x, one[:, :, None], False, read=some)[:, :, 0]
    judge("decode of a list", decode(one, *table[:3], counts, x.scale, read_RK=read).out, listed.out, theirs)
    for causal in (True, False):
        exact = naive.prefill(x.q, *table, x.scale, causal)
        mine = chunk_prefill(x.q, *table, x.scale, causal)
        judge(f"chunk {'causal' if causal else 'history'}", mine.out, exact.out, torch_attention(x, x.q, causal))
        judge("chunk lse", mine.lse, exact.lse, 1e-5)
    exact = naive.prefill(x.q, *table, x.scale, True, SINK, WINDOW)
    mine = stream_prefill(x.q, *table, x.scale, SINK, WINDOW)
    judge("stream", mine.out, exact.out, torch_attention(x, x.q, True, SINK, WINDOW))
    judge("stream lse", mine.lse, exact.lse, 1e-5)
    given = (x.q, table[0], x.table, x.lens)
    theirs = torch_weights(x, x.q, width)
    lse = naive.prefill(x.q, *table, x.scale, True).lse
    exact_scores = naive.column_scores(*given, lse, x.scale, width)
    judge("columns", column_scores(*given, lse, x.scale, width), exact_scores, theirs)
    judge("window", window_scores(*given, x.scale, width), exact_scores, theirs)

    new = torch.randn(2, 8, 37, head_size, device="cuda").to(kind)
    start = (x.lens - 37).where(x.lens > 37, -1)
    own = slice(skip, None)
    before = x.arena[:, own].clone()
    after = before.clone()
    for plane, values in zip(after, new, strict=True):
        naive.append(plane, x.table - skip, start, values)
    append((x.arena[0], x.arena[1]), x.table, start, (new[0], new[1]))
    judge("append", x.arena[:, own].nan_to_num(7), after.nan_to_num(7), 0.0, 0.0)
    kept = torch.stack([torch.arange(64) * max(1, int(m) // 64) for m in x.lens]).cuda()
    counts = x.lens.clamp(max=61)
    pages = -(-64 // page)
    donors = x.table[6, 4 * pages : 8 * pages].flip(0).view(4, pages)  # of a row from which nothing is kept
    few = slice(0, 4)
    for plane in after:
        naive.compact(plane, x.table[few] - skip, kept[few], counts[few], donors - skip)
    compact((x.arena[0], x.arena[1]), x.table[few], kept[few], counts[few], donors)
    judge("compact", x.arena[:, own].nan_to_num(7), after.nan_to_num(7), 0.0, 0.0)
    return found


def far() -> list[dict[str, Any]]:
    """The same where every address is beyond 2^31 elements."""
    return operations(128, 4, 16, "bfloat16", skip=(1 << 31) // (16 * 128) + 1)


def configuration(how: Launch, page: int = 16) -> list[dict[str, Any]]:
    """A launch of the decode kernel that is to be timed, compiled and checked."""
    poison()
    x = Rows([1, 4000, 0, 1025], 128, 4, page, torch.bfloat16, 1)
    one = x.q[:, :, 0].contiguous()
    exact = naive.decode(one, *x.paged, x.scale)
    gap = error(decode(one, *x.paged, x.scale, how=how).out, exact.out)
    limit = error(torch_attention(x, x.q, False)[:, :, 0], exact.out)
    return [{"case": str(how), "op": "decode", "error": gap, "torch": limit, "ok": gap <= 2 * limit + 1e-6}]


def replay() -> list[dict[str, Any]]:
    """A captured step of four layers against the same step launched, while lengths and inputs change; no host sync."""
    rows = [Rows([5 + i, 700 * i + 59, 65, 17], 128, 4, 16, torch.bfloat16, 1) for i in range(4)]
    lens = torch.stack([x.lens for x in rows])
    start = torch.empty_like(lens)
    new = torch.randn(2, 4, 4, 1, 128, device="cuda").bfloat16()
    out = torch.empty(4, 4, 4, 128, device="cuda", dtype=torch.bfloat16)

    def step() -> None:
        start.copy_(lens)
        lens.add_(1)
        made = planned(lens, 128, torch.bfloat16)
        for i, x in enumerate(rows):
            append((x.arena[0], x.arena[1]), x.table, start[i], (new[0, i], new[1, i]))
            given = (x.q[:, :, 0], x.arena[0], x.arena[1], x.table, lens[i], x.scale)
            out[i] = decode(*given, plan=made.layer(i)).out

    def restore() -> None:
        lens.copy_(torch.stack([x.lens for x in rows]))

    step()
    restore()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    restore()
    eager: list[Tensor] = []
    replayed: list[Tensor] = []
    for run, results in ((step, eager), (graph.replay, replayed)):
        restore()
        torch.manual_seed(1)
        for _ in range(5):
            new.normal_()
            for x in rows:
                x.q.normal_()
            torch.cuda.set_sync_debug_mode("error")
            run()
            torch.cuda.set_sync_debug_mode("default")
            results.append(out.clone())
    ok = all(torch.equal(a, b) for a, b in zip(eager, replayed, strict=True)) and bool(torch.isfinite(eager[-1]).all())
    return [{"case": "graph replay == eager, bit for bit", "op": "step", "error": 0.0, "torch": 0.0, "ok": ok}]


def run(task: tuple[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """One check in a process of its own."""
    name, given = task
    call: Callable[..., list[dict[str, Any]]] = globals()[name]
    begin = time.perf_counter()
    found = call(*given)
    for line in found:
        line["seconds"] = round(time.perf_counter() - begin, 1)
    return found
