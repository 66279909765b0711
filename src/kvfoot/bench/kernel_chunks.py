"""A long chunk of Llama-3.1-8B's attention by all that could serve it, and what cuDNN's plans cost (decision 0054)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.pieces import history
from kvfoot.attention.triton import backend, fused
from kvfoot.bench.kernel_rows import BF16, CUDA, DIM, GROUP, HEADS
from kvfoot.bench.measure import milliseconds, seconds

Run = Callable[[], object]


def chunks(k: Tensor, v: Tensor, n: int, scale: float) -> dict[str, Run]:
    """k, v: [HEADS, stored + n, DIM], the chunk's own last. Queries lie as a model has them, heads inside a token.

    In pieces: as the engine does it, blocks copied as from pages; only where the engine would. Flash: torch's, in one
    call, whose causal mask ends in the lower right corner.
    """
    q = torch.randn(n, HEADS, GROUP, DIM, device="cuda").to(BF16).permute(1, 2, 0, 3)
    stored = k.shape[1] - n

    def fetch(start: int, stop: int) -> tuple[Tensor, Tensor]:
        return k[:, start:stop].contiguous(), v[:, start:stop].contiguous()

    def pieces() -> None:
        own = backend.attend(q, k[:, stored:], v[:, stored:], scale, True)
        old = history(backend, q, stored, scale, fetch)
        if old is not None:
            backend.join(old, own, BF16)

    flash = torch.ops.aten._scaled_dot_product_flash_attention
    found: dict[str, Run] = {
        "flash, one call": partial(flash, q.flatten(0, 1)[None], k[None], v[None], 0.0, True, scale=scale)
    }
    return found | {"in pieces": pieces} if backend.piecewise(q, k[:, stored:]) else found


def plans() -> list[dict[str, Any]]:
    """Seconds of the first call of shapes that cuDNN has not met, and the rate of later ones: a layer's, a head's."""
    found: list[dict[str, Any]] = []
    shapes = [(heads, n, 4 * n, False) for heads in (HEADS, 1) for n in (4096, 7168)]
    for heads, n, m, causal in [(HEADS, 7168, 7168, True), *shapes]:
        q, k = (torch.randn(*shape, device="cuda").to(BF16) for shape in ((heads, GROUP, n, DIM), (heads, m, DIM)))
        if fused.suits(q, k, causal):
            once = partial(fused.attend, q, k, k, 0.1, causal)
            first, ms = seconds(once, CUDA), milliseconds(once, CUDA, repeat=5, warm=1)
            flops = 4 * heads * GROUP * DIM * n * m / (2 if causal else 1)
            found.append({"heads": heads, "queries": n, "entries": m, "first_s": first, "tflops": flops / ms / 1e9})
    return found
