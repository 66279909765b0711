"""The result of attending to some of the entries, and how parts join (decision D4)."""

from dataclasses import dataclass

import numpy as np
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


def sink(state: State, s_RH: Tensor) -> State:
    """A logit per query head that takes its share of the softmax and has no value (GPT-OSS): [R, H], n queries each."""
    s_RHn = s_RH.float()[..., None].expand_as(state.lse)
    share = torch.sigmoid(state.lse - s_RHn)
    return State(state.out * share[..., None].to(state.out.dtype), torch.logaddexp(state.lse, s_RHn))


@dataclass(frozen=True)
class Ragged:
    """R rows as they lie in pages: pages int64 [R, P], a row's own first and then any; lens int64 [R], on the host."""

    pages: Tensor
    lens: np.ndarray


@dataclass(frozen=True)
class Least:
    """Which entry each row loses: of C candidates the one of the least value, of equal ones the first entry.

    value fp32, index int32, both [U, C]: U units of R / U neighbouring rows that lose the same entry.
    """

    value: Tensor
    index: Tensor

    @classmethod
    def of(cls, value_Um: Tensor) -> "Least":
        """Of a number per entry, +inf where there is none: C = 1."""
        return cls(value_Um.amin(1, keepdim=True), value_Um.argmin(1, keepdim=True).int())
