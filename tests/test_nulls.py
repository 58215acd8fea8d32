"""Closed forms against scipy and against draws."""

import numpy as np
import pytest
import torch
from helpers.strategies import generator, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linear_sum_assignment

from saefast.nulls.beta import beta_cdf, beta_quantile
from saefast.nulls.cosines import BestOfRandom, PairsOfRandom, _matched_share, cosine_tail

shape_parameters = st.floats(0.2, 5000)


@given(st.lists(st.tuples(shape_parameters, shape_parameters, st.floats(0, 1)), min_size=1))
def test_beta_equals_scipys(cases):
    a, b, x = (np.array(column) for column in zip(*cases, strict=True))
    expected = stats.beta.cdf(x, a, b)
    np.testing.assert_allclose(beta_cdf(x, a, b), expected, rtol=1e-10, atol=1e-14)


@settings(max_examples=30)
@given(st.floats(0.5, 5000), st.floats(0.2, 5000), st.floats(1e-6, 1 - 1e-6))
def test_quantiles_equal_scipys(a, b, share):
    """Up to neighbouring floats, since distributions may be steep at the ends."""
    quantile = float(beta_quantile(share, a, b))
    around = quantile - 4e-16 * quantile, min(quantile + 4e-16 * quantile, 1)
    less, more = stats.beta.cdf(around, a, b)
    assert less - 1e-10 * share <= share <= more + 1e-10 * share


def test_small_tails_are_precise():
    """The best of a hundred thousand needs such tails."""
    for d, t in ((64, 0.8), (768, 0.25), (4096, 0.11)):
        expected = 0.5 * stats.beta.cdf(1 - t * t, (d - 1) / 2, 0.5)
        assert expected < 1e-9
        assert float(cosine_tail(t, d)) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 500), st.floats(-1, 1), st.booleans())
def test_tails_are_complementary_and_monotone(d, t, absolute):
    tail = float(cosine_tail(t, d, absolute))
    assert 0 <= tail <= 1
    assert tail >= float(cosine_tail(min(t + 0.01, 1), d, absolute))
    if d > 1:
        both = tail + float(cosine_tail(-t, d)) if not absolute else 1
        assert both == pytest.approx(1, abs=1e-12)
    if absolute and t > 0:
        assert tail == pytest.approx(2 * float(cosine_tail(t, d)), rel=1e-12)


def test_one_dimension_has_two_directions():
    assert cosine_tail([-1, -0.5, 0, 1], 1).tolist() == [1, 0.5, 0.5, 0.5]
    assert cosine_tail([-1, 0, 0.5, 1], 1, absolute=True).tolist() == [1, 1, 1, 1]
    assert BestOfRandom(2, 1).mean() == pytest.approx(0.5)


DRAWN = [(1, 2), (7, 2), (20, 3), (128, 8), (256, 32), (200, 64)]


def best_of(n: int, d: int, draws: int, absolute: bool) -> torch.Tensor:
    """Draw [draws] best cosines; each draw has its own n directions."""
    random = generator(n * 1000 + d)
    found = []
    for _ in range(draws // 100):
        others = torch.randn(100, n, d, generator=random)
        cosines = others[:, :, 0] / others.norm(dim=2)  # with the first axis, as with any direction
        found.append((cosines.abs() if absolute else cosines).amax(1))
    return torch.cat(found).double()


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("n", "d"), DRAWN)
def test_the_best_of_random_has_the_distribution_of_draws(n, d, absolute):
    null = BestOfRandom(n, d, absolute)
    drawn = best_of(n, d, 1000, absolute)
    error = drawn.std() / len(drawn) ** 0.5
    assert abs(null.mean() - drawn.mean()) <= 4 * error
    # Kolmogorov and Smirnov: the whole distribution, tails included.
    assert stats.kstest(drawn.numpy(), lambda t: 1 - null.reaches(t)).pvalue > 1e-4


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(3, 5000), st.floats(0.001, 0.999), st.booleans())
def test_quantiles_invert_the_distribution_and_bound_the_mean(n, d, share, absolute):
    null = BestOfRandom(n, d, absolute)
    if n == 0:
        assert null.quantile(share) == null.mean() == 0
        return
    assert 1 - float(null.reaches(null.quantile(share))) == pytest.approx(share, abs=1e-6)
    assert null.quantile(1e-9) < null.mean() < null.quantile(1 - 1e-9)


def test_cosines_grow_with_directions_and_fall_with_width():
    means = [BestOfRandom(n, 64).mean() for n in (1, 10, 100, 10_000)]
    assert means == sorted(means)
    assert means[0] == pytest.approx(0, abs=1e-12)
    means = [BestOfRandom(1000, d).mean() for d in (2, 10, 100, 1000)]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(("n", "d"), [(-1, 3), (3, 0)])
def test_impossible_sizes_raise(n, d):
    with pytest.raises(ValueError, match=r"must be at least"):
        BestOfRandom(n, d)


PAIRED = [(150, 150, 16), (100, 130, 16), (130, 100, 16), (200, 500, 64)]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("n", "n2", "d"), PAIRED)
def test_pairs_of_random_have_the_cosines_of_draws(n, n2, d, absolute):
    null = PairsOfRandom(n, n2, d, absolute)
    drawn = []
    for seed in range(12):
        a, b = (normal((size, d), 2 * seed + i, torch.float32) for i, size in enumerate((n, n2)))
        cosines = (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1))
        cosines = cosines.abs() if absolute else cosines
        pairs = linear_sum_assignment(cosines.numpy(), maximize=True)
        drawn.append(cosines[pairs].double())
    means = torch.stack([one.mean() for one in drawn])
    error = float(means.std()) / len(means) ** 0.5
    assert abs(null.mean() - float(means.mean())) <= 0.002 + 3 * error
    together = torch.cat(drawn)
    for share in (0.1, 0.5, 0.9):
        t = float(together.quantile(share))
        assert float(null.reaches(t)) == pytest.approx(1 - share, abs=0.03)
    assert null.mean() < BestOfRandom(max(n, n2), d, absolute).mean()


def test_the_number_of_pairs_matches_the_smaller_side():
    """A check of the method, which does not use the number of pairs."""
    for n, n2 in ((100, 130), (200, 500), (1, 40)):
        edges = np.linspace(-0.9, 1, 257)
        expected = -n2 * np.diff(cosine_tail(edges, 12))
        taken = (expected * _matched_share(expected, n / n2)).sum()
        assert taken == pytest.approx(1, abs=1e-3)


def test_a_single_row_has_the_best_of_many():
    assert PairsOfRandom(1, 4000, 32).mean() == pytest.approx(
        BestOfRandom(4000, 32).mean(), abs=1e-3
    )
    assert PairsOfRandom(0, 5, 3).mean() == 0
    assert PairsOfRandom(0, 5, 3).reaches([0.1, 0.5]).tolist() == [0, 0]


@pytest.mark.parametrize(("n", "n2", "d"), PAIRED)
def test_shares_of_pairs_are_continuous(n, n2, d):
    """A bin holds up to 3 % of the pairs."""
    null = PairsOfRandom(n, n2, d)
    shares = np.linspace(0.01, 0.99, 197)
    quantiles = [null.quantile(share) for share in shares]
    assert 1 - null.reaches(quantiles) == pytest.approx(shares, abs=1e-9)
    # The mean is the integral of the quantiles.
    middle = np.mean([null.quantile(share) for share in (np.arange(2000) + 0.5) / 2000])
    assert null.mean() == pytest.approx(middle, abs=1e-4)
