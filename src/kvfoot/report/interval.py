"""95 % intervals of a mean over samples, without random draws: the same figures give the same page."""

from collections.abc import Sequence
from math import sqrt
from statistics import stdev

Z = 1.959964
FEW = 5
"""Samples below which scores that are no fractions get no interval."""


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of independent values; None where they are too few to say.

    Scores in [0, 1]: Wilson's, which has a width also where all values are equal, and is exact in its variance for
    right-or-wrong scores and too wide (never too narrow) for fractions. Other scores: Student's t.
    """
    n = len(values)
    if not n:
        return None
    mean = sum(values) / n
    if all(0 <= v <= 1 for v in values):
        share = 1 + Z * Z / n
        middle = (mean + Z * Z / (2 * n)) / share
        half = Z / share * sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)
    if n < FEW:
        return None
    half = student(n - 1) * stdev(values) / sqrt(n)
    return mean - half, mean + half


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t by the Cornish-Fisher expansion: error below 0.002 from 4 degrees on."""
    z, v = Z, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v ** (i + 1) for i, term in enumerate(terms))
