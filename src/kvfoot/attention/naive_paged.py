"""The operations over ragged paged rows by their definitions, in plain torch and fp32: what the kernels are judged by.

R rows, H query heads per row, D head size, P pages per table row; pages [pages, page_size, width]. Entry j of row r is
slot j % page_size of page table[r, j // page_size]; a row has lens[r] of them, the rest is slack and may hold anything.
Loops over rows; no speed is meant.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvfoot.attention.naive import attend as _attend
from kvfoot.attention.naive import logits
from kvfoot.attention.padded import LOG2E
from kvfoot.attention.state import Least, State


def entries(pages: Tensor, table_P: Tensor, which: Tensor) -> Tensor:
    """Entries `which` int64 [m] of one row: [m, width]."""
    size = pages.shape[1]
    return pages[table_P.long()[which // size], which % size]


def _first(pages: Tensor, table_P: Tensor, n: int) -> Tensor:
    return entries(pages, table_P, torch.arange(n, device=pages.device))


def append(pages: Tensor, table_RP: Tensor, start_R: Tensor, new_RnW: Tensor) -> None:
    """Entry i of new_RnW becomes entry start_R + i of its row; a row with a negative start takes nothing."""
    size = pages.shape[1]
    for r, start in enumerate(start_R.tolist()):
        for i in range(new_RnW.shape[1] if start >= 0 else 0):
            pages[int(table_RP[r, (start + i) // size]), (start + i) % size] = new_RnW[r, i]


def compact(pages: Tensor, table_RP: Tensor, kept_RC: Tensor, count_R: Tensor, target_RQ: Tensor) -> None:
    """Entry kept_RC[r, i] becomes entry i of the pages target_RQ[r], for i < count_R[r]; no page is in both tables."""
    zero = torch.zeros_like(count_R[:1])
    for r, count in enumerate(count_R.tolist()):
        found = entries(pages, table_RP[r], kept_RC[r, :count].long())
        append(pages, target_RQ[r : r + 1], zero, found[None])


def plan(lens_LR: Tensor, tile: int, programs: int) -> tuple[Tensor, Tensor]:
    """Equal shares of the tiles (`tile` entries of one row) of each of L layers for `programs` programs.

    tiles int32 [L, R + 1]: tiles before each row. first int32 [L, programs + 1]: the row in which a program starts, R
    where nothing is left. Program p has tiles [p * share, (p + 1) * share), share = ceil(all / programs).
    """
    counts = -(-lens_LR.long() // tile)
    tiles = torch.cat([counts.new_zeros(len(counts), 1), counts.cumsum(1)], 1)
    share = (-(-tiles[:, -1:] // programs)).clamp(min=1)
    starts = share * torch.arange(programs + 1, device=share.device)
    first = torch.searchsorted(tiles[:, 1:].contiguous(), starts, right=True)
    return tiles.int(), first.int()


def decode(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    read_RK: Tensor | None = None,
) -> State:
    """One query per head against all of a row's entries, or against entries read_RK[r, : lens_R[r]]: out, lse fp32."""
    out, lse = torch.zeros(q_RHD.shape, device=q_RHD.device), q_RHD.new_full(q_RHD.shape[:2], -torch.inf).float()
    for r, n in enumerate(lens_R.tolist()):
        if n:
            which = torch.arange(n, device=out.device) if read_RK is None else read_RK[r, :n].long()
            k, v = (entries(x, table_RP[r], which)[None] for x in (k_pages, v_pages))
            state = _attend(q_RHD[r : r + 1, :, None], k, v, scale, causal=False)
            out[r], lse[r] = state.out[0, :, 0], state.lse[0, :, 0]
    return State(out, lse)


def weights(
    q_RHD: Tensor,
    k_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    width: int,
    read_RK: Tensor | None = None,
) -> Tensor:
    """The softmax weights of `decode`, fp32 [R, H, width]: 0 beyond a row's entries."""
    found = torch.zeros(*q_RHD.shape[:2], width, device=q_RHD.device)
    for r, n in enumerate(lens_R.tolist()):
        which = torch.arange(n, device=found.device) if read_RK is None else read_RK[r, :n].long()
        k = entries(k_pages, table_RP[r], which)[None]
        found[r, :, :n] = logits(q_RHD[r : r + 1, :, None], k, scale, causal=False).softmax(-1)[0, :, 0]
    return found


def prefill(
    q_RHnD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    causal: bool,
    sink: int = 0,
    window: int | None = None,
) -> State:
    """n queries per head against a row's entries: out fp32 [R, H, n, D], lse fp32 [R, H, n].

    Query i stands at entry p = len - n + i. `causal`: it sees entries [0, p]; a window leaves it [0, sink) and
    (p - window, p] of those. Not causal: it sees all, and there is no window.
    """
    R, H, n, _ = q_RHnD.shape
    out, lse = torch.zeros(q_RHnD.shape, device=q_RHnD.device), torch.full((R, H, n), -torch.inf, device=q_RHnD.device)
    for r, m in enumerate(lens_R.tolist()):
        if m:
            k, v = (_first(x, table_RP[r], m)[None] for x in (k_pages, v_pages))
            s = masked(logits(q_RHnD[r : r + 1], k, scale, causal), sink, window)
            lse[r] = s.logsumexp(-1)[0]
            p = (s - lse[r][None, ..., None]).exp().nan_to_num(0.0)
            out[r] = torch.einsum("rhnm,rmd->rhnd", p, v.float())[0]
    return State(out, lse)


def masked(s_RHnm: Tensor, sink: int, window: int | None) -> Tensor:
    """Causal logits without the entries between the sinks and a query's window."""
    if window is None:
        return s_RHnm
    n, m = s_RHnm.shape[-2:]
    j = torch.arange(m, device=s_RHnm.device)
    p = torch.arange(m - n, m, device=s_RHnm.device)[:, None]
    return s_RHnm.masked_fill((j >= sink) & (j <= p - window), -torch.inf)


def column_scores(
    q_RHnD: Tensor, k_pages: Tensor, table_RP: Tensor, lens_R: Tensor, lse_RHn: Tensor, scale: float, width: int
) -> Tensor:
    """Attention mass that n causal queries put on each entry, normalisers known: fp32 [R, H, width], 0 beyond."""
    R, H = q_RHnD.shape[:2]
    found = torch.zeros(R, H, width, device=q_RHnD.device)
    for r, m in enumerate(lens_R.tolist()):
        if m:
            k = _first(k_pages, table_RP[r], m)[None]
            p = (logits(q_RHnD[r : r + 1], k, scale, causal=True) - lse_RHn[r : r + 1, ..., None]).exp()
            found[r, :, :m] = p.nan_to_num(0.0).sum(-2)[0]
    return found


def window_scores(
    q_RHwD: Tensor, k_pages: Tensor, table_RP: Tensor, lens_R: Tensor, scale: float, width: int
) -> Tensor:
    """The same for the last w queries, softmax over the row's entries."""
    lse = prefill(q_RHwD, k_pages, k_pages, table_RP, lens_R, scale, causal=True).lse
    return column_scores(q_RHwD, k_pages, table_RP, lens_R, lse, scale, width)


def locate(table_RP: Tensor, read_RK: Tensor, count_R: Tensor, page_size: int) -> Tensor:
    """Slots of the arena, page x page_size + place, of entries read_RK[r, : count_R[r]]; 0 beyond: int64 [R, K]."""
    read = torch.where(torch.arange(read_RK.shape[1], device=read_RK.device) < count_R[:, None], read_RK, 0).long()
    slots = table_RP.long().gather(1, read // page_size) * page_size + read % page_size
    return torch.where(torch.arange(read_RK.shape[1], device=read_RK.device) < count_R[:, None], slots, 0)


def move(planes: Sequence[Tensor], source_R: Tensor, target_R: Tensor) -> None:
    """In every plane: the entry at slot source_R[r] of the arena to slot target_R[r]."""
    for plane in planes:
        flat = plane.view(-1, plane.shape[2])
        for source, target in zip(source_R.tolist(), target_R.tolist(), strict=True):
            flat[target] = flat[source].clone()


def replace(planes: Sequence[Tensor], table_RP: Tensor, source_R: Tensor, due_R: Tensor, least: Least) -> None:
    """The same onto the entry of least value, of equal ones the first, in rows that are due."""
    size, unit = planes[0].shape[1], len(source_R) // len(least.value)
    for r in torch.nonzero(due_R).flatten().tolist():
        candidates = zip(least.value[r // unit].tolist(), least.index[r // unit].tolist(), strict=True)
        _, lost = min(candidates)
        target = table_RP[r, lost // size].long() * size + lost % size
        move(planes, source_R[r : r + 1], target[None])


def tally(
    logits_RHm: Tensor,
    lse_RH: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    fence_R: Tensor,
    position: Tensor,
    mass: Tensor | None,
    mean: bool,
    unit: int,
) -> list[int]:
    """See overwrite.tally: which entry each unit loses, -1 where its rows are empty."""
    size, lost = position.shape[1], []
    for first in range(0, len(lens_R), unit):
        own, n = range(first, first + unit), int(lens_R[first])
        w = torch.stack([(logits_RHm[r, :, :n] / LOG2E - lse_RH[r, :, None]).exp() for r in own])
        value = w.mean((0, 1))
        if mass is not None:
            w = w[0].mean(0)[:, None] if mean else w[0].mT
            for j in range(n):
                at = table_RP[first, j // size], j % size
                mass[at] = w[j] + (mass[at] if j < n - 1 else 0)
            value = _first(mass, table_RP[first], n).amax(-1)
        contested = _first(position, table_RP[first], n)[:, 0] <= fence_R[first]
        lost.append(int(value.where(contested, torch.inf).argmin()) if n else -1)
    return lost
