"""Small operations of a decoder layer as single kernels, for the time of one forward pass, in the user's own model.

`applied` gives the known modules of a model instance (known.py) a forward of their own and takes it away at the end:
no class and no transformers' module is changed, and other threads go on with what the model is. RoPE is put off until
attention, which rotates while it stores: until then q and k are `Turning`, and whoever else looks at them gets
them rotated by the model's own function.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kvfoot.attention.backend import Backend
from kvfoot.attention.naive_layer import Target, Turn
from kvfoot.core.errors import UsageError
from kvfoot.models import known, products
from kvfoot.models.products import DTYPES

WIDEST = 16384
"""Elements of a norm: what one program of the kernel holds."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
APPLY = "apply_rotary_pos_emb"
"""The name by which attention modules call RoPE."""
PLACING = threading.Lock()
"""Held while forwards come or go: between two threads on one model, what is found free is free."""


class Kernels(Protocol):
    """attention/naive_layer.py, or its operations by kernels."""

    def rms_norm(self, x: Tensor, weight_N: Tensor, eps: float, *, round_first: bool, plus: float = 0.0) -> Tensor: ...

    def gated(self, gate: Tensor, up: Tensor) -> Tensor: ...

    def project(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> list[Tensor]: ...

    def gated_project(self, x: Tensor, gate_NK: Tensor, up_NK: Tensor) -> Tensor: ...

    def store(
        self, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None, slots_R: Tensor, position_B: Tensor, target: Target
    ) -> Tensor: ...


LEVELS = "0 nothing, 1 small operations, 2 products of one input too, 3 every product of a token"


@dataclass(frozen=True)
class Fuse:
    """What is fused, and by which kernels. level 1: norms, gated MLPs, RoPE with the store of entries. Of one token, 2:
    q, k and v in one launch, and gate, up and their gated product; 3: every other linear module as well.
    """

    kernels: Kernels
    level: int = 1


def fusing(fuse: int | Fuse | None, backend: Backend) -> Fuse | None:
    """What `fuse` (a level, True for 1) means with a backend; None: nothing is fused. Raises UsageError.

    By default the environment's KVFOOT_FUSE, else 3, with the triton backend, and nothing with another one.
    """
    said = os.environ.get("KVFOOT_FUSE") or "3"
    if said not in ("0", "1", "2", "3"):
        raise UsageError(f"KVFOOT_FUSE={said!r}: give {LEVELS}")
    if fuse is None:
        fuse = int(said) if backend.name == "triton" else 0
    if isinstance(fuse, Fuse):
        return fuse
    if fuse == 0:
        return None
    if fuse not in (1, 2, 3):
        raise UsageError(f"fuse={fuse}: give {LEVELS}")
    if backend.name != "triton":
        raise UsageError(f"fuse={fuse}: the kernels are the triton backend's, this engine has {backend.name}")
    from kvfoot.attention.triton import layer

    return Fuse(layer, int(fuse))


class Turning:
    """One of q and k [1, heads, B, D] that is still to be rotated: `plain`, by `turn`. Anything else it is asked for
    is asked of the rotated tensor.
    """

    def __init__(self, plain: Tensor, turn: Turn, rotated: Callable[[], Tensor]):
        self.plain, self.turn, self._rotated = plain, turn, rotated

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain if name in ("shape", "dtype", "device") else self._rotated(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*tree_map(settled, args), **tree_map(settled, kwargs or {}))


def _operator(name: str) -> Callable[..., Any]:
    return lambda x, *others: getattr(x._rotated(), name)(*(settled(y) for y in others))


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "neg", "matmul", "getitem"):
    setattr(Turning, f"__{_name}__", _operator(f"__{_name}__"))


def settled(x: Any) -> Any:
    """x, rotated if it was still to be."""
    return x._rotated() if isinstance(x, Turning) else x


def untouched(q: Any, k: Any) -> tuple[Tensor, Tensor, Turn | None]:
    """q and k as attention gets them, without the rotation that they are still to be given, and that."""
    if isinstance(q, Turning) and isinstance(k, Turning):
        return q.plain, k.plain, q.turn
    return settled(q), settled(k), None


class Fusion:
    """What of a model is fused within `applied`."""

    def __init__(self, model: nn.Module, fuse: Fuse):
        self.model, self.kernels, self.level = model, fuse.kernels, fuse.level

    def found(self) -> dict[str, int]:
        """How many of its modules are known: {"norm": .., "mlp": .., "rope": .., "product": ..}."""
        return dict(Counter(name for _, name, _ in self._fused()))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, in this thread, the known modules of the model run by kernels."""
        thread, placed = threading.get_ident(), []
        try:
            with PLACING:
                for module, _, fused in self._fused():
                    module.forward = _here(thread, fused, module.forward)
                    placed.append(module)
            yield
        finally:
            with PLACING:
                for module in placed:
                    del module.forward

    def _fused(self) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """The known modules, what they are, and a forward in place of their own."""
        found: dict[nn.Module, tuple[str, Callable[..., Any]]] = {}
        for module in self.model.modules():
            norm, mlp, attention = known.norm(module), known.mlp(module), self._attention(module)
            if norm is not None:
                found[module] = "norm", self._norm(module, norm)
            elif mlp is not None:
                found[module] = "mlp", self._mlp(module, mlp)
            elif attention is not None:
                found[module] = "rope", attention
                together = [getattr(module, name, None) for name in PROJECTIONS]
                if self.level > 1 and products.joined(together):
                    for linear, fused in products.together(self.kernels, together):
                        found[linear] = "product", fused
            elif self.level > 2 and products.joined([module]) and module not in found:
                ((_, fused),) = products.together(self.kernels, [module])
                found[module] = "product", fused
        return [(module, *what) for module, what in found.items()]

    def _norm(self, module: Any, what: known.Norm) -> Callable[[Tensor], Tensor]:
        own, eps = module.forward, getattr(module, what.epsilon)

        def forward(x: Tensor) -> Tensor:
            weight = module.weight
            fits = products.whole(weight) and x.dtype == weight.dtype in DTYPES
            if not fits or x.shape[-1] > WIDEST:
                return own(x)
            return self.kernels.rms_norm(x, weight, eps, round_first=what.round_first, plus=what.plus)

        return forward

    def _mlp(self, module: Any, what: known.Gated) -> Callable[[Tensor], Tensor]:
        act, linears = getattr(module, what.act), [getattr(module, name) for name in what.projections]
        weights = products.halves(linears) if self.level > 1 else None

        def forward(x: Tensor) -> Tensor:
            if weights is not None and products.one_token(x, weights[0]):
                return module.down_proj(self.kernels.gated_project(x, *weights))
            parts = [linear(x) for linear in linears]
            gate, up = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)
            fits = gate.dtype == up.dtype and gate.dtype in DTYPES
            return module.down_proj(self.kernels.gated(gate, up) if fits else act(gate) * up)

        return forward

    def _attention(self, module: nn.Module) -> Callable[..., Any] | None:
        """The module's forward with a rotation that is put off, where it calls one that is known."""
        plain = type(module).forward
        if "forward" in vars(module) or not isinstance(plain, FunctionType) or hasattr(plain, "__wrapped__"):
            return None
        rotate = plain.__globals__.get(APPLY)
        rope = known.rope(rotate) if APPLY in plain.__code__.co_names else None
        if rope is None:
            return None
        space = {**plain.__globals__, APPLY: _put_off(rotate, rope)}
        own = FunctionType(plain.__code__, space, plain.__name__, plain.__defaults__, plain.__closure__)
        own.__kwdefaults__ = plain.__kwdefaults__
        return own.__get__(module)


def _here(thread: int, fused: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (fused if threading.get_ident() == thread else own)(*args, **kwargs)

    return forward


def _put_off(rotate: Any, what: known.Rope) -> Callable[..., Any]:
    def later(q: Any, k: Any, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        whole = cos.shape == sin.shape == (1, q.shape[2], q.shape[-1]) and q.shape[-1] % 2 == 0
        kinds = {q.dtype, k.dtype} | (set() if what.widened else {cos.dtype})
        wide = cos.dtype in (q.dtype, torch.float32) and cos.dtype == sin.dtype
        if args or kwargs or len(q) != 1 or len(kinds) != 1 or not (whole and wide) or q.dtype not in DTYPES:
            return rotate(q, k, cos, sin, *args, **kwargs)
        both: list[Any] = []

        def rotated(which: int) -> Tensor:
            if not both:
                both.extend(rotate(q, k, cos, sin))
            found: Tensor = both[which]
            return found

        turn = Turn(cos, sin)
        return Turning(q, turn, lambda: rotated(0)), Turning(k, turn, lambda: rotated(1))

    return later
