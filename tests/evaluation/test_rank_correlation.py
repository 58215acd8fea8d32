"""Rank correlations against brute force and scipy, and the interval by construction."""

import numpy as np
import pytest

from saefast.evaluation.rank_correlation import kendall, spearman, spearman_interval


def test_correlations_equal_brute_force() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 5, 30).astype(float), draw.integers(0, 4, 30).astype(float)
    concordant = tied_a = tied_b = 0
    for i in range(30):
        for j in range(i):
            concordant += int(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]))
            tied_a += a[i] != a[j]
            tied_b += b[i] != b[j]
    assert kendall(a, b) == pytest.approx(concordant / np.sqrt(tied_a * tied_b))
    order = np.array([sorted(a.tolist()).index(x) + (np.sum(a == x) - 1) / 2 for x in a])
    other = np.array([sorted(b.tolist()).index(x) + (np.sum(b == x) - 1) / 2 for x in b])
    assert spearman(a, b) == pytest.approx(np.corrcoef(order, other)[0, 1])
    assert np.isnan(spearman(a, np.zeros(30)))
    np.testing.assert_allclose(
        kendall(np.stack([a, b]), np.stack([b, b])), [float(kendall(a, b)), 1.0]
    )


@pytest.mark.parametrize("seed", range(3))
def test_correlations_equal_scipys(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(seed).integers(0, 6, (2, 15)).astype(float)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    a[:] = 1
    assert np.isnan(spearman(a, b))
    assert np.isnan(kendall(a, b))


def test_the_interval_matches_resampled_pairs() -> None:
    draw = np.random.default_rng(2)
    a = draw.normal(size=12)
    b = a + draw.normal(size=12)
    found = spearman_interval(a, b, seed=5)
    generator = np.random.default_rng(5)
    drawn = []
    for chosen in generator.integers(12, size=(2000, 12)):
        drawn.append(float(spearman(a[chosen], b[chosen])))
    assert found.value == float(spearman(a, b))
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    assert np.isnan(spearman_interval(np.zeros(0), np.zeros(0))).all()
    assert np.isnan(spearman_interval(a, np.zeros(12))).all()
