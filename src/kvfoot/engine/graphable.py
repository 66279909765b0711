"""Which methods decode by a recorded step, and why the others do not."""

from typing import Any

import numpy as np
import torch

from kvfoot.attention.backend import Backend
from kvfoot.core.errors import UsageError
from kvfoot.core.hooks import POSITION, Method, Needs, Plan, declared
from kvfoot.core.ranking import Recency
from kvfoot.core.reading import Reader
from kvfoot.engine.graph import Record

WHOLE = np.iinfo(np.int32).max
OBTAINED = Needs.WINDOW_SCORES | Needs.COLUMN_SCORES | Needs.KEYS | Needs.PRE_ROPE
"""What overwrite.py shows a method, and ranks.py gives it."""


def why_eager(method: Method, plan: Plan) -> str | None:
    """What of a method's decode step cannot be replayed; None: nothing, but for single steps (`Reader.phase`)."""
    if Needs.PRE_ROPE in method.needs and plan.later is not None and not isinstance(declared(method), Recency):
        return "it renumbers positions and does not declare that the oldest entry goes"
    if method.needs & ~OBTAINED:
        return f"it needs {method.needs & ~OBTAINED}, which a replayed step does not obtain"
    if not plan.storage.plain:
        return "its cache is stored in few bits, or on the host"
    if isinstance(method, Reader):
        if method.verify or method.rectify:
            return f"{'verify' if method.verify else 'rectify'} reads tokens again"
        if plan.later is not None:
            return "a reader over rows that are cut while decoding"
        if method.tokens > 1:
            return "its steps read tokens before the newest once more"
        if method.phase(1, WHOLE, plan.reads or 1) is None:
            return "its lists change shape, or it scans keys, at every step"
        return None
    if plan.later is None:
        return None if all(plane is POSITION for plane in plan.planes) else "it watches steps and evicts nothing"
    if type(method).keep is not Method.keep:
        return "it chooses by a `keep` of its own, not by `priority`"
    if (plan.later.counts == WHOLE).any() and len(plan.planes) > 1:
        return "it watches rows that it does not cut"
    return None


def why_not_here(model: Any, backend: Backend) -> str | None:
    """What of the model's or the backend's part cannot be replayed."""
    if not hasattr(backend, "paged"):
        return f"the {backend.name} backend has no attention by lengths on the device"
    if getattr(model.config, "num_local_experts", None) or getattr(model.config, "num_experts", None):
        return "the model sends tokens to experts by lists that the host reads"
    return None


def wanted(graph: bool | Record | None, model: Any, backend: Backend, device: torch.device) -> bool | Record:
    """Whether decode steps are recorded: False, True for CUDA graphs, or with what. Raises UsageError.

    None, the default: on CUDA with the triton backend, whose attention reads no more than a launched step's.
    """
    if graph is False:
        return False
    why = why_not_here(model, backend)
    if graph is None:
        return why is None and device.type == "cuda" and backend.name == "triton"
    if graph is True and device.type != "cuda":
        why = f"a decode step is recorded on a CUDA device, this model is on {device.type}"
    if why is not None:
        raise UsageError(f"graph=True: {why}: leave it out")
    return graph


def told(graph: bool | Record, method: Method, plan: Plan) -> str:
    """How a run's decode steps go, for the record: "graph", or "eager" with the method's reason in brackets."""
    if not graph:
        return "eager"
    why = why_eager(method, plan)
    return "graph" if why is None else f"eager ({why})"
