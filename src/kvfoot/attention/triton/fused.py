"""Long chunks by cuDNN's attention, which torch carries: where it is, and for which work it is chosen (decision 0054).

Measured at the shape of Llama-3.1-8B on an H100: 598 to 662 TFLOP/s where chunk_prefill reaches 358 to 428. A plan of
cuDNN's costs tens to hundreds of milliseconds per shape and thread: taken are shapes that recur, and single long ones.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from kvfoot.attention.pieces import WIDE
from kvfoot.attention.state import State

QUERIES = 4096
"""Fewest queries: the work that pays for a plan."""
EVEN = 1024
"""Chunks are a multiple of it, or each length would have its plan: a prompt's odd end is not worth one."""
LONE = 32768
"""A prompt that is read in one pass is, from this length."""
CUDNN = int(SDPBackend.CUDNN_ATTENTION)  # type: ignore[call-overload]


def recurs(n: int) -> bool:
    """Whether chunks have such lengths."""
    return n >= QUERIES and n % EVEN == 0


def available(q_RHnD: Tensor, k_RmD: Tensor) -> bool:
    """Whether torch itself would take cuDNN for such tensors: its version, the device, dtype and head size decide.

    TORCH_CUDNN_SDPA_DEPRIORITIZED=1 and torch.backends.cuda.enable_cudnn_sdp(False) say no.
    """
    q, k = whole(q_RHnD.flatten(0, 1)), whole(k_RmD)
    return int(torch._fused_sdp_choice(q, k, k, enable_gqa=True)) == CUDNN


def suits(q_RHnD: Tensor, k_RmD: Tensor, causal: bool) -> bool:
    """The rule. Causal: a square. Else: blocks of a history (pieces.py)."""
    n, m = q_RHnD.shape[2], k_RmD.shape[1]
    shape = m == n and (recurs(n) or n >= LONE) if causal else recurs(n) and m in (n, WIDE * n)
    return shape and available(q_RHnD, k_RmD)


def attend(q_RHnD: Tensor, k_RmD: Tensor, v_RmD: Tensor, scale: float, causal: bool) -> State:
    """See naive.attend, n == m where causal. out lies as the queries do; no key is repeated for its query heads."""
    R, H, n, D = q_RHnD.shape
    q, k, v = whole(q_RHnD.flatten(0, 1)), whole(k_RmD), whole(v_RmD)
    if q.device.type == "cpu":  # under the interpreter
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    else:
        op = torch.ops.aten._scaled_dot_product_cudnn_attention
        out, lse, *_ = op(q, k, v, None, True, 0.0, causal, False, scale=scale)
    return State(out[0].view(R, H, n, D), lse.reshape(R, H, n))


def whole(x: Tensor) -> Tensor:
    """[heads, length, D] as a batch of one. The batch's stride is of no use but is part of a plan's key: it is that of
    memory of its own, whatever x is a part of."""
    heads, length, _ = x.shape
    batch = max(heads * x.stride(0), length * x.stride(1))
    return x.as_strided((1, *x.shape), (batch, *x.stride()), x.storage_offset())
