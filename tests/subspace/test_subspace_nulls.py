"""The nulls: moments, uniform p-values where they hold, and the effects that each detects."""

import math

import pytest
import torch
from helpers.planted_subspaces import fit, groups_of, in_subspace, random_subspace
from helpers.strategies import normal
from helpers.tolerance import assert_same_bits
from torch import Tensor

from saefast import Dictionary
from saefast.nulls.permutations import NullTest, beside, generator_of
from saefast.subspace.angles import haar_capture, haar_overlap
from saefast.subspace.results import GroupSpectrum, PairOverlap


def test_of(result: PairOverlap | GroupSpectrum, null: str, statistic: str) -> NullTest:
    return next(test for test in result.tests if (test.null, test.statistic) == (null, statistic))


test_of.__test__ = False  # a helper with a descriptive name


def anisotropic(m: int, d: int, seed: int) -> Tensor:
    """Draw independent directions of one covariance, and return its root, the scale."""
    return normal((m, d), seed, torch.float64) * scale(d)


def scale(d: int) -> Tensor:
    return torch.logspace(0, -1.2, d, dtype=torch.float64)


@pytest.mark.parametrize("null", ["random", "rotated"])
def test_overlaps_under_isotropic_nulls_have_the_moments_of_the_formula(null):
    """The nulls "haar", "random" and "rotated" agree for any spectrum of the features."""
    d, r, draws = 10, 3, 400
    rows = [anisotropic(50, d, s) for s in range(2)]
    found = fit(rows, nulls=["haar", null], rank=r, draws=draws)
    pair = found.pairs[0]
    for statistic in ("overlap", "capture_ab", "capture_ba"):
        exact, drawn = test_of(pair, "haar", statistic), test_of(pair, null, statistic)
        error = exact.sd / math.sqrt(draws)
        assert abs(drawn.mean - exact.mean) < 4 * error
        if null == "rotated" or statistic == "overlap":
            assert drawn.sd == pytest.approx(exact.sd, rel=0.2)
    assert (test_of(pair, "haar", "overlap").mean, test_of(pair, "haar", "overlap").sd) == (
        haar_overlap(r, d)
    )
    shares = found.spectra[0].singular_values.square()
    expected = haar_capture(shares / shares.sum(), r, d)
    capture = test_of(pair, "haar", "capture_ab")
    assert (capture.mean, capture.sd) == pytest.approx(expected)
    # The curve covers all ranks.
    chance = torch.arange(1, d + 1, dtype=torch.float64) / d
    assert_same_bits(pair.bands["haar"].mean, chance)
    errors = 4 * torch.tensor([haar_overlap(k, d).sd for k in range(1, d + 1)]) / math.sqrt(draws)
    assert ((pair.bands[null].mean - chance).abs() <= errors + 1e-9).all()
    assert (pair.bands[null].low <= pair.bands[null].mean).all()
    assert (pair.bands[null].high >= pair.bands[null].mean).all()


def rows_under(null: str, seed: int) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Draw two seeds for which the null holds."""
    m, d = 60, 8
    if null == "random":
        return [normal((m, d), 2 * seed + s, torch.float64) for s in range(2)], groups_of(m)
    if null == "covariance":
        return [anisotropic(m, d, 2 * seed + s) for s in range(2)], groups_of(m)
    if null == "rotated":
        turns = [torch.linalg.qr(normal((d, d), 9 * seed + s, torch.float64)).Q for s in range(2)]
        return [anisotropic(m, d, seed) @ turn for turn in turns], groups_of(m)
    # A random half of each seed, regardless of what seeds share.
    half = [torch.randperm(m, generator=generator_of(seed, s)) < m // 2 for s in range(2)]
    return [anisotropic(m, d, 7)] * 2, [{"all": mask} for mask in half]


@pytest.mark.parametrize("null", ["random", "covariance", "subset", "rotated"])
def test_p_values_are_uniform_where_the_null_holds(null):
    """Over 40 pairs of seeds; 4 standard errors of a uniform mean, and few below 0.1."""
    ps: dict[str, list[float]] = {}
    inside = 0
    for seed in range(40):
        rows, groups = rows_under(null, 100 * seed)
        covariance = torch.diag(scale(8).square())
        found = fit(rows, groups, nulls=[null], covariance=covariance, draws=19, rank=3, seed=seed)
        for test in (*found.pairs[0].tests, *found.spectra[0].tests):
            ps.setdefault(test.statistic, []).append(test.p)
            inside += test.low <= test.value <= test.high
    ps.pop("energy_rank", None)  # an integer, with ties
    assert len(ps) == (4 if null == "rotated" else 6)
    for values in ps.values():
        assert abs(sum(values) / 40 - 0.525) < 4 * math.sqrt(1 / 12 / 40)
        assert sum(p <= 0.1 for p in values) <= 12  # 4 expected, sd 1.9
    statistics = 4 if null == "rotated" else 7
    assert inside / 40 / statistics > 0.75  # the band of 19 draws holds 90 % to 95 %


def test_overlap_by_a_common_covariance_is_explained_by_its_null():
    """The null "haar" is rejected, the null "covariance" is not."""
    rows = [anisotropic(300, 20, s) for s in range(2)]
    pair = fit(
        rows, nulls=["haar", "covariance"], covariance=torch.diag(scale(20).square()), rank=4
    ).pairs[0]
    haar, covariance = test_of(pair, "haar", "overlap"), test_of(pair, "covariance", "overlap")
    assert haar.value > haar.mean + 10 * haar.sd
    assert covariance.low < covariance.value < covariance.high


def test_a_shared_subspace_beyond_the_covariance_is_detected():
    hidden = random_subspace(3, 20, 5)
    rows = [torch.cat([in_subspace(hidden, 40, 10 + s), anisotropic(60, 20, s)]) for s in range(2)]
    group = [{"u": torch.arange(100) < 40}] * 2
    covariance = torch.diag(scale(20).square())
    pair = fit(rows, group, nulls=["covariance", "subset"], covariance=covariance, rank=3).pairs[0]
    for null in ("covariance", "subset"):
        assert test_of(pair, null, "overlap").p == pytest.approx(1 / 101)
    # The covariance of that subspace explains it.
    pair = fit(rows, group, nulls=["covariance"], covariance=hidden.T @ hidden, rank=3).pairs[0]
    assert test_of(pair, "covariance", "overlap").p > 0.02


def test_a_null_of_too_small_rank_is_reported():
    rows = [normal((30, 6), s, torch.float64) for s in range(2)]
    found = fit(rows, nulls=["covariance"], covariance=torch.diag(torch.eye(6)[0]), draws=5, rank=2)
    pair = found.pairs[0]
    assert not pair.tests
    assert len(pair.bands["covariance"].mean) == 1
    assert found.skipped == (
        "null 'covariance' of group 'all', dictionaries 0 and 1: its subspaces have only 1 of 2 "
        "dimensions",
    )
    assert found.to_table("curves")["covariance_mean"][1].as_py() is None


def test_random_directions_have_the_ranks_of_their_number():
    rows = [normal((40, 20), 0, torch.float64), in_subspace(random_subspace(5, 20, 1), 40, 2)]
    found = fit(rows, nulls=["random"], draws=50)
    for statistic in ("effective_rank", "participation_ratio"):
        alike = test_of(found.spectra[0], "random", statistic)
        lower = test_of(found.spectra[1], "random", statistic)
        assert abs(alike.value - alike.mean) < 4 * alike.sd
        assert lower.p == pytest.approx(1 / 51)
        assert lower.value < 5 + 1e-9 < lower.low


def test_the_subset_null_draws_from_alive_features():
    """The group has all alive features, so every draw is the group itself."""
    rows = [normal((30, 6), s, torch.float64) for s in range(2)]
    rate = (torch.arange(30) < 20).float()
    dictionaries = [Dictionary(each, firing_rate=rate) for each in rows]
    pair = fit(dictionaries, groups_of(30), nulls=["subset"], draws=4).pairs[0]
    for curve in vars(pair.bands["subset"]).values():
        torch.testing.assert_close(curve, pair.overlap_curve)


def test_the_initial_null_uses_the_group_before_training():
    before = [normal((30, 6), s, torch.float64) for s in range(2)]
    before[1][3] = 0
    after = [normal((30, 6), 5 + s, torch.float64) for s in range(2)]
    groups = [{"some": torch.arange(30) < 12}] * 2
    found = fit(after, groups, nulls=["initial"], initial=before, rank=2)
    expected = fit(before, groups, rank=2)
    pair, other = found.pairs[0], expected.pairs[0]
    assert_same_bits(pair.bands["initial"].mean, other.overlap_curve)
    for statistic in ("overlap", "capture_ab", "capture_ba"):
        test = test_of(pair, "initial", statistic)
        assert test.mean == getattr(other, statistic)
        assert (test.draws, test.p, test.low) == (1, None, None)
    rank = test_of(found.spectra[0], "initial", "effective_rank")
    assert rank.mean == expected.spectra[0].effective_rank


def test_draws_depend_only_on_seed_null_and_group():
    rows = [anisotropic(40, 6, s) for s in range(2)]
    half = [{"half": torch.arange(40) < 20}] * 2
    options = {"draws": 5, "rank": 2}
    alone = fit(rows, half, nulls=["subset"], **options).pair("half", 0, 1)
    both = [groups_of(40)[0] | half[0]] * 2
    among = fit(rows, both, nulls=["random", "subset"], **options)
    again = fit(rows, half, nulls=["subset"], seed=1, **options).pair("half", 0, 1)
    more = fit(rows, half, nulls=["subset"], **options | {"draws": 6}).pair("half", 0, 1)
    assert test_of(among.pair("half", 0, 1), "subset", "overlap") == alone.tests[0]
    assert again.tests[0].mean != alone.tests[0].mean
    assert more.tests[0].mean != alone.tests[0].mean
    # Seeds of a pair, and draws, have different random numbers.
    same = fit([rows[0]] * 2, nulls=["random"], draws=3, rank=2).pairs[0]
    assert test_of(same, "random", "overlap").high < 0.99
    assert test_of(same, "random", "overlap").sd > 0


def test_p_values_rank_a_number_among_draws():
    draws = [0.1, 0.2, 0.3, 0.4]
    large = beside("n", "s", 0.3, draws, 0.5)
    assert (large.null, large.statistic, large.draws) == ("n", "s", 4)
    numbers = (large.value, large.mean, large.sd, large.low, large.high, large.p)
    assert numbers == pytest.approx((0.3, 0.25, 0.1290994449, 0.175, 0.325, 3 / 5))
    assert beside("n", "s", 0.2, draws, 0.5, small_is_extreme=True).p == 3 / 5
    assert beside("n", "s", 0.5, draws, 0.5).p == 1 / 5
    assert beside("n", "s", 0.0, draws, 0.5).p == 1
    assert beside("n", "s", 0.5, [0.2], 0.5) == NullTest(
        null="n", statistic="s", value=0.5, mean=0.2, draws=1
    )


def test_draws_that_differ_from_the_value_by_rounding_alone_are_as_extreme():
    # Every two subspaces of the whole space are equal.
    rows = [normal((40, 12), seed, torch.float64) for seed in range(2)]
    whole = fit(rows, nulls=["random", "subset", "rotated"], rank=12, draws=19).pairs[0]
    tests = [test for test in whole.tests if test.statistic != "shared_dimensions"]
    assert len(tests) == 9
    assert all(test.value == pytest.approx(1) and test.p == 1 for test in tests)
    # All sets of as many orthogonal directions have equal ranks.
    frames = [torch.linalg.qr(normal((48, 48), seed, torch.float64)).Q for seed in range(2)]
    few = [{"few": torch.arange(48) < 16}] * 2
    for spectrum in fit(frames, few, nulls=["subset"], draws=19).spectra:
        assert {test.p for test in spectrum.tests} == {1.0}
