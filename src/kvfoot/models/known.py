"""Which functions of transformers' models are known by what they do, whatever they are called and in whatever version.

A function is known by a fingerprint of its statements, so one that a new version changes, a subclass overrides or a
decorator wraps is not, and stays as it is.
"""

import ast
import hashlib
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn
from transformers.activations import SiLUActivation


@dataclass(frozen=True)
class Norm:
    """RMSNorm. epsilon: the attribute; round_first, plus: see naive_layer.rms_norm; helper: a method it calls."""

    epsilon: str
    round_first: bool
    plus: float = 0.0
    helper: tuple[str, str] | None = None


@dataclass(frozen=True)
class Gated:
    """An MLP down(silu(gate(x)) x up(x)). projections: attributes, one for both halves or gate and up; act: silu's."""

    projections: tuple[str, ...]
    act: str


@dataclass(frozen=True)
class Rope:
    """q, k, cos, sin -> q, k. widened: computed in the wider dtype of x and cos, then rounded to x's."""

    widened: bool


KNOWN: dict[str, Norm | Gated | Rope] = {
    "075c8d1982795b4a": Norm("variance_epsilon", True),  # Llama, Mistral, Qwen2, Qwen3, Phi-3, SmolLM3
    "2c29d28177dec537": Norm("variance_epsilon", False),  # OLMo2
    "072c442d528d274c": Norm("eps", False, 1.0, ("_norm", "80a7328746bf45b4")),  # Gemma-3
    "d9e9fc4111026fc2": Gated(("gate_proj", "up_proj"), "act_fn"),  # all but Phi-3
    "cc9ee1739c1f26d2": Gated(("gate_up_proj",), "activation_fn"),  # Phi-3
    "3d85ac36f6fd225e": Rope(False),  # all but those below
    "6e3b536c76126afc": Rope(True),  # OLMo2
    "4662faa28ac9586a": Rope(False),  # Phi-3, where the whole head is rotated
}
"""By fingerprint; the same in transformers 5.2.0 and 5.17.0. Not here: Cohere2's LayerNorm and interleaved RoPE."""

HALVES = "a68a16140f32af85"
"""rotate_half of two halves, which every `Rope` above calls."""


@cache
def fingerprint(function: Any) -> str | None:
    """16 hex digits over a plain function's arguments and statements; None where there is no source to read."""
    if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__"):
        return None
    try:
        found = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError):
        return None
    if not isinstance(found, ast.FunctionDef):
        return None
    body = found.body[1:] if ast.get_docstring(found, clean=False) is not None else found.body
    text = ", ".join(x.arg for x in found.args.args) + "\n" + "\n".join(ast.unparse(x) for x in body)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def norm(module: nn.Module) -> Norm | None:
    """What an RMSNorm is; None for any other module."""
    found = _forward(module)
    if not isinstance(found, Norm):
        return None
    if found.helper is not None and fingerprint(getattr(type(module), found.helper[0], None)) != found.helper[1]:
        return None
    return found


def mlp(module: nn.Module) -> Gated | None:
    """What a gated MLP is; None for any other module, and for activations that are not SiLU or have hooks."""
    found = _forward(module)
    if not isinstance(found, Gated):
        return None
    act: Any = getattr(module, found.act, None)
    return None if type(act) not in (nn.SiLU, SiLUActivation) or hooked(act) else found


def hooked(module: nn.Module) -> bool:
    """Whether somebody looks at its calls, or changes them: it has to be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def rope(function: Any) -> Rope | None:
    """What a function that applies RoPE is; None for any other."""
    found = KNOWN.get(fingerprint(function) or "")
    if not isinstance(found, Rope) or fingerprint(function.__globals__.get("rotate_half")) != HALVES:
        return None
    return found


def _forward(module: nn.Module) -> Norm | Gated | Rope | None:
    """An instance may have a forward of its own: that is not known."""
    return None if "forward" in vars(module) else KNOWN.get(fingerprint(type(module).forward) or "")
