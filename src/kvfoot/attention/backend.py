"""Which implementation of the attention operations runs, and why (decision D10: never silently another one)."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from kvfoot.attention import naive, sdpa
from kvfoot.attention.rings import Rings
from kvfoot.attention.state import Least, Ragged, State
from kvfoot.core.errors import UsageError, did_you_mean


class Backend(Protocol):
    """The operations of attention/naive.py and, with lengths on the device, attention/padded.py and overwrite.py."""

    name: str

    def attend(
        self, q_RHnD: Tensor, k_RmD: Tensor, v_RmD: Tensor, scale: float, causal: bool, visible: Tensor | None = None
    ) -> State: ...

    def piecewise(self, q_GHnD: Tensor, k_GnD: Tensor) -> bool:
        """Whether a chunk is better attended to in pieces than over its gathered history. See attention/pieces.py."""

    def join(self, a: State, b: State, dtype: torch.dtype) -> State: ...

    def decode(self, q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor, rows: Ragged, scale: float) -> State: ...

    def gathered(self, q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor, slots_Rm: Tensor, scale: float) -> State: ...

    def window_scores(self, q_RHwD: Tensor, k_RmD: Tensor, scale: float) -> Tensor: ...

    def column_scores(self, q_RHnD: Tensor, k_RmD: Tensor, lse_RHn: Tensor, scale: float) -> Tensor: ...

    def planned(self, lens_LR: Tensor, head_dim: int, dtype: torch.dtype) -> Any:
        """For `paged` of a step's layers, by `.layer(i)`; None where it wants nothing. See attention/padded.py."""

    def paged(
        self,
        q_RHD: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        table_RP: Tensor,
        lens_R: Tensor,
        scale: float,
        *,
        plan: Any = None,
        width: int = 0,
        read: Tensor | None = None,
        logits: bool = False,
    ) -> tuple[State, Tensor | None]: ...

    def emitted(
        self,
        q_RHD: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        table_RP: Tensor,
        lens_R: Tensor,
        scale: float,
        *,
        plan: Any = None,
        values: bool = True,
    ) -> tuple[State, Any]:
        """What comes beside the state: see emitted.Emitted."""

    def push(self, rings: Rings, lens_LR: Tensor, slots_LR: Tensor) -> None: ...

    def refill(
        self,
        rings: Rings,
        layer: int,
        rows_E: Tensor,
        chosen_EK: Tensor,
        fired_R: Tensor,
        table_RP: Tensor,
        page_size: int,
    ) -> None: ...

    def reach(self, q_RHD: Tensor, low_RPD: Tensor, high_RPD: Tensor, lens_R: Tensor, page: int, mean: bool) -> Tensor:
        """For methods that read pages by their bounds. See attention/naive_bounds.py."""

    def widen(
        self, low_RPD: Tensor, high_RPD: Tensor, k_pages: Tensor, slots_R: Tensor, lens_R: Tensor, page: int
    ) -> None: ...

    def move(self, planes: Sequence[Tensor], source_R: Tensor, target_R: Tensor) -> None: ...

    def replace(
        self, planes: Sequence[Tensor], table_RP: Tensor, source_R: Tensor, due_R: Tensor, least: Least
    ) -> None: ...

    def tally(
        self,
        logits_RHm: Tensor,
        lse_RH: Tensor,
        table_RP: Tensor,
        lens_R: Tensor,
        source_R: Tensor,
        fence_R: Tensor,
        position: Tensor,
        mass: Tensor | None,
        mean: bool,
        unit: int,
    ) -> Least: ...


BACKENDS: dict[str, Backend] = {"naive": naive, "sdpa": sdpa}
"""Those that need nothing but torch; `triton` is loaded when it is asked for."""


def choose(name: str | None = None) -> Backend:
    """The backend `name`, else the environment's KVFOOT_BACKEND, else sdpa. Raises UsageError for an unknown name.

    `triton` raises it too where the package is missing, and, case by case, for what the kernels cannot serve. A model
    whose backend nobody names has that of `suited`.
    """
    name = name or os.environ.get("KVFOOT_BACKEND") or "sdpa"
    if name == "triton":
        from kvfoot.attention.triton import load

        return load()
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}{did_you_mean(name, [*BACKENDS, 'triton'])}")
    return BACKENDS[name]


def suited(head_dim: int, group: int, dtype: torch.dtype, page_size: int, device: torch.device) -> Backend:
    """The backend of a model where none is asked for: KVFOOT_BACKEND, else triton on a GPU whose kernels serve it."""
    named = os.environ.get("KVFOOT_BACKEND")
    if named or device.type != "cuda" or find_spec("triton") is None:
        return choose(named)
    from kvfoot.attention.triton import common

    return choose("triton" if common.refuse(dtype, head_dim, group, page_size, device) is None else "sdpa")
