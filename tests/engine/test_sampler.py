"""Sampling by counter: the distribution asked for, and draws that nothing but seed, sequence and place decide."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.engine import noise
from kvfoot.engine.sampler import Sampling

LOGITS = torch.tensor([1.5, -0.5, 0.75, 2.5, -2.0, 0.0, 1.0, 0.5])
DRAWS = 20_000
CRITICAL = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}
"""Chi-square that is exceeded once in a thousand times, by degrees of freedom; the seeds are fixed."""


def chi_square(sampling: Sampling, p: Tensor) -> tuple[float, float]:
    """Of 20,000 places of one stream against probabilities p: (statistic, its critical value)."""
    key = sampling.generator(0).key
    found = sampling.choose(LOGITS.expand(DRAWS, -1), torch.full((DRAWS,), key), torch.arange(DRAWS))
    counts = torch.bincount(found, minlength=len(LOGITS)).double()
    some = p > 0
    assert counts[~some].sum() == 0
    expected = p[some].double() * DRAWS
    return float(((counts[some] - expected) ** 2 / expected).sum()), CRITICAL[int(some.sum()) - 1]


def softmax(temperature: float, allowed: int = len(LOGITS)) -> Tensor:
    """Of the `allowed` likeliest."""
    least = LOGITS.sort(descending=True).values[allowed - 1]
    return (LOGITS / temperature).masked_fill(least > LOGITS, -torch.inf).softmax(0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_draws_from_the_softmax(temperature: float, seed: int) -> None:
    statistic, critical = chi_square(Sampling(temperature, seed=seed), softmax(temperature))
    assert statistic < critical


@pytest.mark.parametrize("k", [2, 5])
def test_top_k_draws_from_the_k_likeliest(k: int) -> None:
    statistic, critical = chi_square(Sampling(1.5, seed=11, top_k=k), softmax(1.5, k))
    assert statistic < critical
    one = Sampling(1.5, seed=11, top_k=1).choose(LOGITS.expand(50, -1), torch.arange(50), torch.arange(50))
    assert (one == LOGITS.argmax()).all()


def test_top_k_counts_tokens_also_where_logits_are_equal() -> None:
    flat, many = torch.zeros(4000, 6), torch.arange(4000)
    assert set(Sampling(1.0, top_k=2).choose(flat, many, many).tolist()) == {0, 1}


def test_top_p_and_top_k_together() -> None:
    """top_p counts what top_k has left, as transformers does: .61 of the three likeliest is the first."""
    assert float(softmax(1.0, 3).max()) > 0.6 > float(softmax(1.0).max())
    statistic, critical = chi_square(Sampling(1.0, 0.8, seed=2, top_k=3), _nucleus(0.8))
    assert statistic < critical
    first = Sampling(1.0, 0.6, top_k=3).choose(LOGITS.expand(50, -1), torch.arange(50), torch.arange(50))
    assert (first == LOGITS.argmax()).all()


def _nucleus(top_p: float) -> Tensor:
    """Of the three likeliest, the smallest set that reaches top_p."""
    p = softmax(1.0, 3)
    kept, total = torch.zeros_like(p), 0.0
    for i in p.argsort(descending=True).tolist():
        if total < top_p:
            kept[i] = p[i]
        total += float(p[i])
    return kept / kept.sum()


def test_greedy_is_the_largest_logit_of_each_row() -> None:
    rows = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Sampling().choose(rows, torch.zeros(5).long(), torch.zeros(5).long()), rows.argmax(1))


def test_a_batch_draws_what_each_row_draws_alone() -> None:
    rows, key, at = torch.randn(9, 500), torch.arange(9) * 977, torch.arange(9) * 3
    sampling = Sampling(1.0, 0.95, top_k=100)
    together = sampling.choose(rows, key, at)
    order = torch.randperm(9)
    assert torch.equal(sampling.choose(rows[order], key[order], at[order]), together[order])
    alone = [int(sampling.choose(rows[i : i + 1], key[i : i + 1], at[i : i + 1])) for i in range(9)]
    assert together.tolist() == alone


def test_pick_moves_along_the_stream() -> None:
    sampling = Sampling(1.0, seed=3)
    stream = sampling.generator(2)
    stream.position = 40
    picked = [sampling.pick(LOGITS, stream) for _ in range(30)]
    at = torch.arange(40, 70)
    assert picked == sampling.choose(LOGITS.expand(30, -1), torch.full((30,), stream.key), at).tolist()


def test_seeds_sequences_and_places_are_independent() -> None:
    """No correlation between noise of neighbouring places, sequences or seeds: |r| < 4 / sqrt(n)."""
    n = 20_000
    base = noise.gumbel(torch.tensor([noise.stream(0, 0)]), torch.tensor([5]), n)[0]
    for seed, index, position in ((0, 0, 6), (0, 1, 5), (1, 0, 5)):
        other = noise.gumbel(torch.tensor([noise.stream(seed, index)]), torch.tensor([position]), n)[0]
        assert abs(float(torch.corrcoef(torch.stack([base, other]))[0, 1])) < 4 / n**0.5
    assert float(base.mean()) == pytest.approx(0.5772, abs=0.04)
    assert float(base.var()) == pytest.approx(np.pi**2 / 6, abs=0.1)
    assert torch.isfinite(base).all()


def test_the_mixing_is_splitmix64() -> None:
    """First outputs for seed 1234567 of the generator as its authors published it."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = noise.mix(1234567 + torch.arange(1, 5) * noise.signed(noise.GOLDEN))
    assert found.tolist() == [noise.signed(x) for x in outputs]
    assert [noise.scramble(1234567 + i * noise.GOLDEN) for i in range(1, 5)] == found.tolist()


def test_wrong_values() -> None:
    with pytest.raises(UsageError, match="top_k=-1 is negative"):
        Sampling(top_k=-1)
