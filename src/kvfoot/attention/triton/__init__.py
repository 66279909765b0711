"""Triton kernels over ragged paged rows, one a file, each with its definition in naive.py or naive_paged.py.

Importing this package imports no GPU library; `load` does.
"""

from typing import TYPE_CHECKING

from kvfoot.core.errors import UsageError

if TYPE_CHECKING:
    from kvfoot.attention.backend import Backend


def load() -> "Backend":
    """The backend. Raises UsageError where triton is not installed."""
    try:
        import triton  # noqa: F401
    except ImportError:
        raise UsageError("the triton backend needs the triton package: pip install 'kvfoot[triton]'") from None
    from kvfoot.attention.triton import backend

    return backend
