"""kvfoot: long-context language models in a fraction of the KV memory, and what it cost."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kvfoot.core.errors import KvfootError
    from kvfoot.core.hooks import Keep, Method, Needs, Plane, Seen
    from kvfoot.core.records import Footprint, RunRecord
    from kvfoot.core.registry import methods, register
    from kvfoot.engine.dropin import Cache
    from kvfoot.engine.engine import Engine
    from kvfoot.engine.result import Interrupted, Result
    from kvfoot.engine.session import Session

_HOME = {
    "Cache": "kvfoot.engine.dropin",
    "Engine": "kvfoot.engine.engine",
    "Footprint": "kvfoot.core.records",
    "Interrupted": "kvfoot.engine.result",
    "Keep": "kvfoot.core.hooks",
    "KvfootError": "kvfoot.core.errors",
    "Method": "kvfoot.core.hooks",
    "Needs": "kvfoot.core.hooks",
    "Plane": "kvfoot.core.hooks",
    "Result": "kvfoot.engine.result",
    "RunRecord": "kvfoot.core.records",
    "Seen": "kvfoot.core.hooks",
    "Session": "kvfoot.engine.session",
    "methods": "kvfoot.core.registry",
    "register": "kvfoot.core.registry",
}
__all__ = [
    "Cache",
    "Engine",
    "Footprint",
    "Interrupted",
    "Keep",
    "KvfootError",
    "Method",
    "Needs",
    "Plane",
    "Result",
    "RunRecord",
    "Seen",
    "Session",
    "methods",
    "register",
]


def __getattr__(name: str) -> Any:
    """Names are imported on first use: `import kvfoot` loads neither torch nor transformers."""
    if name not in _HOME:
        raise AttributeError(f"module 'kvfoot' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
