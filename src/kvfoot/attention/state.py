"""The result of attending to some of the entries, and how parts join (decision D4)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class State:
    """out [..., D]: softmax-weighted values over a part's entries; lse [...]: fp32, natural log of the normaliser.

    An empty part has out = 0 and lse = -inf.
    """

    out: Tensor
    lse: Tensor


def merge(a: State, b: State) -> State:
    """Attention over the union of two disjoint parts. Associative, commutative; empty parts change nothing."""
    share = torch.sigmoid(b.lse - a.lse).nan_to_num(0.0)  # of b; two empty parts: -inf - -inf
    return State(
        torch.lerp(a.out.to(share.dtype), b.out.to(share.dtype), share[..., None]), torch.logaddexp(a.lse, b.lse)
    )
