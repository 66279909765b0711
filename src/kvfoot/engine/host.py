"""What the drop-in asks of the model that it is a guest of, and where it looks (engine/dropin.py)."""

import weakref
from typing import Any

from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.core.hooks import Method, Needs


def check_method(method: Method) -> None:
    """Refuse what transformers' own passes leave no room for."""
    if Needs.PRE_ROPE in method.needs:
        raise UsageError(
            f"{method.name} renumbers positions (PRE_ROPE), generate() rotates by its own: use kvfoot.Engine"
        )
    replay = next((name for name in ("verify", "rectify") if getattr(method, name, 0)), None)
    if replay is not None:
        raise UsageError(f"{method.name}: {replay} reads tokens again, generate() reads them once: use kvfoot.Engine")
    if getattr(method, "tokens", 1) > 1:
        raise UsageError(
            f"{method.name} reads tokens again to correct them, generate() reads them once: use kvfoot.Engine"
        )
    if getattr(method, "unrotates", False):
        raise UsageError(f"{method.name}: prerope=true needs the model's own RoPE beside generate(): use kvfoot.Engine")
    if getattr(method, "patch", False):
        raise UsageError(f"{method.name}: patch=true adds tokens to a pass, generate() has its own: use kvfoot.Engine")


def base_of(model: Any) -> Any:
    """The transformers model under PEFT's wrapper. Raises UsageError for what a cache of one device cannot serve."""
    peft = getattr(model, "active_peft_config", None)
    if peft is not None and getattr(peft, "is_prompt_learning", False):
        raise UsageError(f"PEFT's {peft.peft_type} puts entries of its own into the cache: use an adapter such as LoRA")
    base = model.get_base_model() if peft is not None else model
    devices = sorted({str(p.device) for p in base.parameters()})
    if len(devices) != 1 or devices == ["meta"]:
        raise UsageError(
            f"the model's layers are on {', '.join(devices)}: the cache is on one device, use device_map={{'': 0}}"
        )
    return base


def row_width(mask: Tensor | None, columns: int) -> int:
    """Columns of the whole prompt: `prefill_chunk_size` hands out views mask[:, :n] of the prompt's mask."""
    if mask is None or mask.stride(1) != 1:
        return columns
    return max(columns, mask.stride(0))


def watch(decoder: Any, cache: "weakref.ref[Any]") -> list[Any]:
    """Removable hooks that tell a living cache where a pass over it begins and ends: its `begin` and `end`."""

    def meant(inputs: dict[str, Any]) -> Any:
        past = cache()
        return past if inputs.get("past_key_values") is past else None

    def before(module: Any, args: Any, inputs: dict[str, Any]) -> Any:
        past = meant(inputs)
        return None if past is None else (args, past.begin(inputs))

    def after(module: Any, args: Any, inputs: dict[str, Any], output: Any) -> None:
        past = meant(inputs)
        if past is not None:
            past.end()

    hooks = [
        decoder.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(after, with_kwargs=True),
    ]
    for hook in hooks:
        weakref.finalize(cache(), hook.remove)
    return hooks
