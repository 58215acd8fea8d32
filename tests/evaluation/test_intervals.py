"""Intervals of evaluations: coverage, pairing, ties and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from saefast.evaluation.intervals import (
    Interval,
    auroc,
    auroc_interval,
    gap_closed,
    interval_of_difference,
    interval_of_equal_items,
    mean_interval,
    paired_interval,
    proportion_interval,
    smallest_difference,
    student_interval,
    two_way_interval,
)


def test_two_way_interval_covers_the_mean_of_seeds_and_tasks():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        seeds = generator.standard_normal((12, 1))
        tasks = generator.standard_normal((1, 20))
        noise = 0.3 * generator.standard_normal((12, 20))
        found = two_way_interval(2 + seeds + tasks + noise, draws=400)
        covered += found.low <= 2 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize("seeds", [2, 3, 4])
@pytest.mark.parametrize("tasks", [1, 6])
def test_intervals_over_a_few_seeds_cover_the_mean(seeds, tasks):
    """Resamples of two seeds without Student's tails cover it half of the time."""
    generator = np.random.default_rng(seeds)

    def drawn(count):
        return generator.standard_normal((count, 1)) + 0.2 * generator.standard_normal(
            (count, tasks)
        )

    covered = np.zeros(3)
    for _ in range(300):
        values, other = drawn(seeds), drawn(seeds)
        covered += [
            found.low <= 0 <= found.high
            for found in (
                two_way_interval(values, draws=800),
                paired_interval(values, other),
                paired_interval(values, drawn(5)),
            )
        ]
    assert (covered / 300 >= 0.9).all(), covered / 300
    assert (covered[:2] / 300 <= 0.995).all(), covered / 300


def test_a_single_value_has_no_interval():
    for found in (
        two_way_interval([[0.7]]),
        two_way_interval([[np.nan, 0.7]]),
        mean_interval([0.7]),
        paired_interval([[0.8]], [[0.1]]),
    ):
        assert found.value == pytest.approx(0.7)
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_resampling_tasks_alone_would_not_cover_the_spread_of_seeds():
    values = np.arange(6.0)[:, None] + np.zeros((6, 30))
    found = two_way_interval(values)
    assert found.high - found.low > 1
    assert mean_interval(values.mean(0)).high - mean_interval(values.mean(0)).low < 1e-12


def test_intervals_do_not_extend_beyond_possible_values():
    low = np.array([[0.0, 0.1], [0.0, 0.0], [0.2, 0.0]])
    high = 1 - low
    free, found = two_way_interval(high), two_way_interval(high, limits=(0.0, 1.0))
    assert free.high > 1
    assert found == (free.value, free.low, 1.0)
    free, found = two_way_interval(low), two_way_interval(low, limits=(-1.0, 1.0))
    assert free.low > -1
    assert found == free
    assert two_way_interval(low, limits=(0.0, 1.0)) == (free.value, 0.0, free.high)
    free, found = paired_interval(high, low), paired_interval(high, low, limits=(0.0, 1.0))
    assert free.high > 1
    assert found == (free.value, free.low, 1.0)
    assert paired_interval(low, high, limits=(0.0, 1.0)).low == -1


def test_bits_depend_on_arguments_and_seed_only():
    values = np.random.default_rng(1).standard_normal((3, 8))
    assert two_way_interval(values) == two_way_interval(values)
    assert two_way_interval(values, seed=1) != two_way_interval(values)


def test_a_difference_is_paired_over_tasks():
    generator = np.random.default_rng(2)
    tasks = 10 * generator.standard_normal((1, 15))
    a, b = (tasks + 0.1 * generator.standard_normal((4, 15)) for _ in range(2))
    found = paired_interval(a + 0.5, b)
    assert found.value == pytest.approx(0.5, abs=0.1)
    assert found.high - found.low < 0.3
    alone = paired_interval(a + 0.5, b[:1])
    assert alone.high - alone.low < 0.5


def test_a_difference_needs_the_same_tasks():
    with pytest.raises(ValueError, match="same number of tasks, got 3 and 2"):
        paired_interval(np.zeros((1, 3)), np.zeros((1, 2)))


def test_missing_values_are_left_out():
    values = np.array([[1.0, np.nan, 3.0], [1.0, np.nan, 3.0]])
    assert two_way_interval(values).value == 2
    assert mean_interval([1.0, np.nan, 3.0]).value == 2
    assert math.isnan(mean_interval([np.nan]).value)


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_equals_scikit_learns(levels):
    generator = np.random.default_rng(levels)
    labels = generator.random(300) < 0.3
    scores = generator.integers(0, levels, 300) + labels * levels / 4
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auroc_interval(labels, scores).value == auroc(labels, scores)


def test_auroc_intervals_cover_the_truth():
    generator = np.random.default_rng(3)
    truth = 0.5 * (1 + math.erf(1 / 2))  # for unit normals whose means differ by one
    covered = 0
    for _ in range(300):
        labels = np.arange(120) < 50
        found = auroc_interval(labels, generator.standard_normal(120) + labels)
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 300 <= 0.985


def test_separated_classes_have_an_interval():
    found = auroc_interval([1, 1, 1, 0, 0, 0, 0], [5, 6, 7, 1, 2, 3, 4])
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 3))
    turned = auroc_interval([0, 0, 0, 1, 1, 1, 1], [5, 6, 7, 1, 2, 3, 4])
    assert turned == (0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 3)))


def test_one_class_has_no_auroc():
    assert math.isnan(auroc([1, 1], [0.5, 0.7]))
    assert math.isnan(auroc_interval([0, 0], [0.5, 0.7]).value)


def test_proportions_have_jeffreys_interval():
    from scipy.stats import beta

    found = proportion_interval(3, 10)
    assert found == pytest.approx((0.3, *beta.ppf([0.025, 0.975], 3.5, 7.5)))
    assert proportion_interval(0, 10).low == 0
    assert proportion_interval(10, 10).high == 1
    assert math.isnan(proportion_interval(0, 0).value)


def test_a_gap_hidden_by_noise_is_not_closed():
    assert gap_closed(0.7, 0.5, 0.9) == pytest.approx(0.5)
    assert math.isnan(gap_closed(0.7, 0.5, 0.9, noise=0.1))
    assert math.isnan(gap_closed(0.7, 0.9, 0.9))


def test_the_smallest_difference_shrinks_with_runs():
    assert smallest_difference(0.01) == pytest.approx(1.96 * math.sqrt(2) * 0.01, rel=1e-4)


def test_equal_items_have_an_interval():
    """The share that n independent items miss with probability 2.5 % may be at both ends."""
    interval = interval_of_equal_items(0.25, 40, 0.0, 1.0)
    missed = 1 - 0.025 ** (1 / 40)
    assert (1 - missed) ** 40 == pytest.approx(0.025)
    assert interval.value == 0.25
    assert interval.low == pytest.approx(0.25 * (1 - missed))
    assert interval.high == pytest.approx(0.25 + 0.75 * missed)
    assert interval_of_equal_items(1.0, 40, 0.0, 1.0).high == 1
    without = interval_of_equal_items(0.0, 40, float("nan"), 1.0)
    assert np.isnan(without.low)
    assert without.high == pytest.approx(missed)


def test_a_difference_of_equal_items_has_the_uncertainty_of_both():
    a, b = Interval(0.5, 0.4, 0.7), Interval(0.2, 0.1, 0.25)
    flat = interval_of_difference(a, b, np.full(10, 0.3))
    assert flat == pytest.approx((0.3, 0.4 - 0.25, 0.7 - 0.1))
    drawn = interval_of_difference(a, b, np.linspace(0.2, 0.4, 1001))
    assert drawn == pytest.approx((0.3, 0.205, 0.395))


def test_students_interval_matches_scipy():
    values = np.random.default_rng(3).normal(size=5)
    for n in (2, 3, 5):
        low, high = stats.t.interval(0.95, n - 1, values[:n].mean(), stats.sem(values[:n]))
        interval = student_interval([*values[:n], float("nan")])
        assert interval == pytest.approx((values[:n].mean(), low, high), rel=1e-10)
    one = student_interval([0.5])
    assert one.value == 0.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(student_interval([]).value)
