"""Where an unmodified Hugging Face model meets the engine: an attention function and a Cache subclass (decision D1).

`Cache.update` hands out a handle in place of keys and values; the attention function finds in it whom to ask. Models
whose tensors are no handles (another cache, training) go on to the implementation that they had before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from kvfoot.core.errors import UsageError


@dataclass(frozen=True)
class Call:
    """A layer's attention as the model asks for it: q [B, heads, T, D], k and v [B, kv_heads, T, D] after RoPE.

    window: tokens that a query sees, its own included, None for all. sinks: [heads], a logit per query head that takes
    part in the softmax and has no value.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    window: int | None = None
    sinks: Tensor | None = None


Attend = Callable[[Call], Tensor]
"""A layer's attention -> its output [B, T, heads, D]."""

PREFIX = "kvfoot_"
IGNORED = {
    "cache_position",
    "dropout",
    "is_causal",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}


class SeenLength(int):
    """The key length that `PassCache` reports: it tells the mask function that no mask is to be built."""


class Handle:
    """Stands for a layer's new keys and values on their way from `Cache.update` to the attention function."""

    def __init__(self, layer: int, k: Tensor, v: Tensor, attend: Attend):
        self.layer, self.k, self.v, self.attend = layer, k, v, attend


class PassCache(transformers.Cache):
    """A Cache for one forward pass: `attend` gets every layer's new keys and values, `seen` tokens came before."""

    is_compileable = False

    def __init__(self, attend: Attend, seen: int):
        self.layers: list[Any] = []
        self.attend, self.seen = attend, seen

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        handle = Handle(layer_idx, key_states, value_states, self.attend)
        return handle, handle

    def get_seq_length(self, layer_idx: int = 0, *args: Any) -> int:
        """Tokens seen, never entries kept."""
        return self.seen

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_mask_sizes(self, query: Any, layer_idx: int = 0) -> tuple[int, int]:
        """(key length, offset); `query` is a tensor of positions up to transformers 5.3, later a length."""
        return SeenLength(self.seen + (query if isinstance(query, int) else query.shape[0])), 0

    @property
    def is_sliding(self) -> list[bool]:
        return [False]

    @property
    def is_initialized(self) -> bool:
        return True

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise UsageError(
            "kvfoot's cache cannot be cropped, reordered or repeated: beam search and assisted decoding need that"
        )

    crop = reorder_cache = batch_repeat_interleave = batch_select_indices = _refuse


def attach(model: PreTrainedModel) -> str:
    """Route the model's attention through kvfoot's function; returns the name of the implementation it had."""
    previous: str = model.config._attn_implementation or "sdpa"
    if previous.startswith(PREFIX):
        return previous.removeprefix(PREFIX)
    name = PREFIX + previous
    AttentionInterface.register(name, _attention(previous))
    AttentionMaskInterface.register(name, _mask(previous))
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise UsageError(
            f"{type(model).__name__} does not dispatch its attention through AttentionInterface: kvfoot cannot run it"
        )
    return previous


def detach(model: PreTrainedModel, previous: str) -> None:
    """Undo `attach`."""
    model.set_attn_implementation(previous)


def _attention(previous: str) -> Callable[..., Any]:
    def attention(
        module: Any,
        query: Tensor,
        key: Any,
        value: Any,
        attention_mask: Any,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if not isinstance(key, Handle):
            plain = ALL_ATTENTION_FUNCTIONS.get_interface(previous, _eager(module))
            return plain(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        strange = {k: v for k, v in kwargs.items() if v is not None and k not in IGNORED}
        window, sinks = strange.pop("sliding_window", None), strange.pop("s_aux", None)
        if window is not None and window >= getattr(module.config, "max_position_embeddings", float("inf")):
            window = None  # no position leaves it (layout.windows)
        if strange:
            raise UsageError(
                f"{type(module).__name__} asks for {', '.join(sorted(strange))}, which kvfoot does not honour: this "
                "model is not supported"
            )
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        return key.attend(Call(key.layer, query, key.k, key.v, scale, window, sinks)), None

    return attention


def _mask(previous: str) -> Callable[..., Any]:
    def mask(*args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("kv_length"), SeenLength):
            return kwargs.get("attention_mask")
        return AttentionMaskInterface()[previous](*args, **kwargs)

    return mask


def _eager(module: Any) -> Callable[..., Any]:
    """The eager attention of the module's own file: what transformers falls back to."""
    import sys

    return sys.modules[type(module).__module__].eager_attention_forward
