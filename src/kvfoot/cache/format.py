"""Keys and values as they are stored: as computed, or in 8 or 4 bits (decision 0040).

In few bits a vector of D numbers is divided into groups of 32 neighbouring channels (the greatest common divisor of 32
and D). A group is an fp16 minimum, an fp16 step, and a whole number of steps per channel, 0 .. 2^bits - 1:

    [D x bits / 8 bytes of codes | 2 bytes a group, the minima | 2 bytes a group, the steps]

One entry needs no other: what is appended, evicted, copied or moved is never coded again. Of 4 bits the low half of a
byte is one of the first D / 2 channels, the high half the channel D / 2 further.
"""

from dataclasses import dataclass
from math import gcd
from typing import Protocol

import torch
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.core.storage import Storage

GROUP = 32


class Format(Protocol):
    """dtype [width]: what one key or one value is stored as."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def width(self) -> int: ...

    def encode(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., width]."""
        ...

    def decode(self, stored: Tensor) -> Tensor:
        """[..., width] -> [..., D] in the model's dtype."""
        ...


@dataclass(frozen=True)
class Plain:
    """As the model computes them."""

    dtype: torch.dtype
    width: int

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, stored: Tensor) -> Tensor:
        return stored


class Grouped:
    """bits: 8 or 4. The error of a number is at most half its group's step, and 2^-11 of the group's minimum."""

    dtype = torch.uint8

    def __init__(self, bits: int, head_dim: int, out: torch.dtype):
        if bits not in (8, 4):
            raise UsageError(f"store={bits}: 8 or 4 bits, or none for the model's own dtype")
        if head_dim * bits % 8:
            raise UsageError(f"store={bits}: heads of {head_dim} numbers do not fill whole bytes: use store=8")
        self.bits, self.out = bits, out
        self.group = gcd(GROUP, head_dim)
        self.groups, self.coded = head_dim // self.group, head_dim * bits // 8
        self.width = self.coded + 4 * self.groups

    def encode(self, x: Tensor) -> Tensor:
        x = x.float().unflatten(-1, (self.groups, self.group))
        low, most = x.amin(-1).half(), float(2**self.bits - 1)
        step = ((x.amax(-1) - low.float()) / most).half()
        scaled = (x - low.float()[..., None]) / step.float()[..., None]
        codes = scaled.nan_to_num(0.0).round_().clamp_(0, most).to(torch.uint8).flatten(-2)  # 0 / 0: all are equal
        if self.bits == 4:
            first, second = codes.chunk(2, -1)
            codes = first | second << 4
        return torch.cat([codes, low.view(torch.uint8), step.view(torch.uint8)], -1)

    def decode(self, stored: Tensor) -> Tensor:
        codes, low, step = stored.split([self.coded, 2 * self.groups, 2 * self.groups], -1)
        if self.bits == 4:
            codes = torch.cat([codes & 15, codes >> 4], -1)
        low, step = (part.contiguous().view(torch.float16).float()[..., None] for part in (low, step))
        return torch.addcmul(low, codes.unflatten(-1, (self.groups, self.group)).float(), step).flatten(-2).to(self.out)


def format_of(storage: Storage, head_dim: int, dtype: torch.dtype) -> Format:
    """Raises UsageError for bits that do not fit."""
    return Plain(dtype, head_dim) if storage.bits is None else Grouped(storage.bits, head_dim, dtype)
