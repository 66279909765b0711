"""The operations of attention/naive.py and naive_paged.py by Triton kernels. What they cannot serve is refused.

Masks of any form are torch's: windows of a model's own layers while a prompt is read, and tokens that are read again.
"""

import torch
from torch import Tensor

from kvfoot.attention import sdpa
from kvfoot.attention.state import Ragged, State
from kvfoot.attention.triton import column_scores as columns
from kvfoot.attention.triton import decode as decoding
from kvfoot.attention.triton import emitted as refreshing
from kvfoot.attention.triton import fused
from kvfoot.attention.triton import window_scores as windows
from kvfoot.attention.triton.bounds import reach, widen
from kvfoot.attention.triton.chunk_prefill import chunk_prefill
from kvfoot.attention.triton.emitted import Emitted
from kvfoot.attention.triton.join import join
from kvfoot.attention.triton.plan import Plan
from kvfoot.attention.triton.replace import move, replace
from kvfoot.attention.triton.rings import push, refill
from kvfoot.attention.triton.tally import tally

__all__ = [
    "attend",
    "column_scores",
    "decode",
    "emitted",
    "gathered",
    "join",
    "move",
    "name",
    "paged",
    "piecewise",
    "planned",
    "push",
    "reach",
    "refill",
    "replace",
    "tally",
    "widen",
    "window_scores",
]
name = "triton"


def attend(
    q_RHnD: Tensor, k_RmD: Tensor, v_RmD: Tensor, scale: float, causal: bool, visible: Tensor | None = None
) -> State:
    """See naive.attend; out has the queries' dtype. A long chunk's square and blocks: cuDNN, where fused.suits."""
    if visible is not None:
        return sdpa.attend(q_RHnD, k_RmD, v_RmD, scale, causal, visible)
    if fused.suits(q_RHnD, k_RmD, causal):
        return fused.attend(q_RHnD, k_RmD, v_RmD, scale, causal)
    return chunk_prefill(q_RHnD, k_RmD, v_RmD, None, None, scale, causal)


def piecewise(q_GHnD: Tensor, k_GnD: Tensor) -> bool:
    """See pieces.piecewise: where the pieces are cuDNN's."""
    return fused.recurs(q_GHnD.shape[2]) and fused.available(q_GHnD, k_GnD)


def window_scores(q_RHwD: Tensor, k_RmD: Tensor, scale: float) -> Tensor:
    """See naive.window_scores."""
    return windows.window_scores(q_RHwD, k_RmD, None, None, scale)


def column_scores(q_RHnD: Tensor, k_RmD: Tensor, lse_RHn: Tensor, scale: float) -> Tensor:
    """See naive.column_scores."""
    return columns.column_scores(q_RHnD, k_RmD, None, None, lse_RHn, scale)


def decode(q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor, rows: Ragged, scale: float) -> State:
    """See naive.decode; out has the queries' dtype. A captured step calls triton.decode, with lengths on the device."""
    lens_R = torch.from_numpy(rows.lens).to(q_RHD.device, non_blocking=True)
    return decoding.decode(q_RHD, k_pages, v_pages, rows.pages, lens_R, scale)


def planned(lens_LR: Tensor, head_dim: int, dtype: torch.dtype) -> Plan:
    """See padded.planned: one launch for all layers."""
    return decoding.planned(lens_LR, head_dim, dtype)


def paged(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    *,
    plan: Plan | None = None,
    width: int = 0,
    read: Tensor | None = None,
    logits: bool = False,
) -> tuple[State, Tensor | None]:
    """See padded.paged."""
    given = (q_RHD, k_pages, v_pages, table_RP, lens_R, scale)
    if width:
        return decoding.decode_emitting(*given, width, plan=plan, read_RK=read, logits=logits)
    return decoding.decode(*given, plan=plan, read_RK=read), None


def emitted(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table_RP: Tensor,
    lens_R: Tensor,
    scale: float,
    *,
    plan: Plan | None = None,
    values: bool = True,
) -> tuple[State, Emitted]:
    """See emitted.emitted."""
    return refreshing.emitted(q_RHD, k_pages, v_pages, table_RP, lens_R, scale, plan, values)


def gathered(q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor, slots_Rm: Tensor, scale: float) -> State:
    """See naive.gathered: the arena as pages of one entry."""
    R, m = slots_Rm.shape
    k, v = (x.view(-1, 1, x.shape[2]) for x in (k_pages, v_pages))
    lens_R = torch.full((R,), m, dtype=torch.int32, device=q_RHD.device)
    return decoding.decode(q_RHD, k, v, slots_Rm, lens_R, scale)
