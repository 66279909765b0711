"""Colours that everybody can tell apart, and marks for whoever cannot."""

from itertools import combinations

import numpy as np
import pytest

from kvfoot.report.palette import DARK, LIGHT, SERIES, look, mark

SEEN = {
    "all": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
"""Linear RGB as it is seen (Machado, Oliveira and Fernandes 2009, severity 1)."""
LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_contrast(theme: dict[str, str]) -> None:
    for ground in ("paper", "page", "wash"):
        assert contrast(theme["ink"], theme[ground]) > 7
        assert contrast(theme["soft"], theme[ground]) > 4.5
    assert contrast(theme["ink"], theme["marked"]) > 4.5
    for i in range(SERIES):
        assert contrast(theme[f"s{i}"], theme["paper"]) >= 3


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("eyes", SEEN)
def test_series_differ_for_all_eyes(theme: dict[str, str], eyes: str) -> None:
    colours = [theme["ink"], *(theme[f"s{i}"] for i in range(SERIES))]
    seen = [LAB @ np.cbrt(LMS @ np.clip(SEEN[eyes] @ linear(c), 0, 1)) for c in colours]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2))
    assert nearest > (0.08 if eyes == "tritanopia" else 0.11)


def test_64_series_differ_in_colour_or_mark() -> None:
    looks = {(look(i, False).split()[0], mark(i, 0, 0)) for i in range(64)}
    assert len(looks) == 64
    assert [look(i, False) for i in (1, 8, 9)] == ["c1", "c0", "c1 again"]
    assert look(0, True) == "f"
