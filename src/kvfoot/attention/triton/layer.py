"""The operations of attention/naive_layer.py by Triton kernels."""

from kvfoot.attention.triton.gated import gated
from kvfoot.attention.triton.project import gated_project, project
from kvfoot.attention.triton.rms_norm import rms_norm
from kvfoot.attention.triton.store import store

__all__ = ["gated", "gated_project", "project", "rms_norm", "store"]
