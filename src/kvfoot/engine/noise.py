"""Random numbers by counter: a function of (stream, position, token) alone, in every batch and on every device.

SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): its n-th output is the finaliser of key + n x GOLDEN, so that any place of
a stream is one expression, without a state. Integers are torch's signed 64 bits, which wrap.
"""

import torch
from torch import Tensor

BITS = 64
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signed(x: int) -> int:
    """The same 64 bits as a signed number."""
    x &= (1 << BITS) - 1
    return x - (1 << BITS) if x >> (BITS - 1) else x


def scramble(x: int) -> int:
    """The finaliser on the host: 64 bits to 64 bits."""
    x &= (1 << BITS) - 1
    for shift, factor in ((30, FIRST), (27, SECOND)):
        x = ((x ^ (x >> shift)) * factor) & ((1 << BITS) - 1)
    return signed(x ^ (x >> 31))


def stream(seed: int, index: int) -> int:
    """The key of a sequence's own random numbers."""
    return scramble(scramble(seed) + index * GOLDEN)


def mix(z: Tensor) -> Tensor:
    """`scramble` of every element, int64."""
    for shift, factor in ((30, FIRST), (27, SECOND)):
        z = (z ^ _shifted(z, shift)) * signed(factor)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, count: int) -> Tensor:
    return (z >> count) & ((1 << (BITS - count)) - 1)


def gumbel(stream_B: Tensor, position_B: Tensor, size: int) -> Tensor:
    """Standard Gumbel noise fp32 [B, size] for one position of each of B streams, both int64 on the device."""
    base = mix(stream_B + position_B * signed(GOLDEN))
    token = torch.arange(1, size + 1, device=stream_B.device) * signed(GOLDEN)
    u = (_shifted(mix(base[:, None] + token), 32).float() + 0.5) * 2.0**-32
    # -log(1 - u), not -log(u): the winner has the smallest exponential, and fp32 is finest next to 0.
    return -(-torch.log1p(-u.clamp(max=1 - 2.0**-24))).log()
