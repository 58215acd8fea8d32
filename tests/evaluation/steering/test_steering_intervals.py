"""Intervals of means over latents sampled by strata."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from saefast.evaluation.scores import Score
from saefast.evaluation.steering.scores import Measure, Sample, scores_of, stratified_draws


def scored(values: list[float], stratum: list[int], **known: float) -> Score:
    n = len(values)
    sample = Sample(
        condition=np.full(n, "trained"),
        sae=np.zeros(n, dtype=np.int64),
        latent=np.arange(n),
        stratum=np.array(stratum),
        weight=np.ones(n),
    )
    measure = Measure(name="success", values=np.array(values), **known)
    return scores_of(measure, sample, [{}], None, 1, 0)[0]


def draws(values: NDArray[np.float64], stratum: list[int], weight: list[float]) -> float:
    drawn = stratified_draws(values, np.array(stratum), np.array(weight), [0])
    return float(drawn.std())


def test_strata_of_one_latent_have_the_spread_of_all() -> None:
    values = np.random.default_rng(0).standard_normal(20)
    alone = draws(values, list(range(20)), [1.0] * 20)
    assert alone == pytest.approx(float(values.std(ddof=1)) / math.sqrt(20), rel=0.1)
    assert draws(values, [0] * 20, [1.0] * 20) == pytest.approx(alone, rel=0.1)


def test_stratification_removes_the_spread_between_strata() -> None:
    values = np.repeat([0.0, 10.0], 10) + np.random.default_rng(1).standard_normal(20)
    parted = draws(values, [0] * 10 + [1] * 10, [1.0] * 20)
    assert parted < 0.3 < 0.8 < draws(values, [0] * 20, [1.0] * 20)


def test_a_latent_has_the_weight_of_those_it_represents() -> None:
    values = np.array([0.0, 0.0, 1.0, 1.0])
    drawn = stratified_draws(values, np.array([0, 0, 1, 1]), np.array([3.0, 3.0, 1.0, 1.0]), [0])
    assert drawn == pytest.approx(0.25)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_equal_latents_have_an_interval_within_the_range(n: int) -> None:
    found = scored([0.0] * n, [0] * n, lowest=0.0, ceiling=1.0)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / n))
    both = scored([0.0] * n, [0] * n, lowest=-1.0, ceiling=1.0)
    assert both.low == pytest.approx(-both.high)


def test_equal_latents_of_a_measure_without_range_have_no_interval() -> None:
    found = scored([0.25] * 4, [0] * 4)
    assert found.value == 0.25
    assert math.isnan(found.low)
    assert math.isnan(found.high)
