"""Prediction of success from properties: against brute force and by construction."""

import numpy as np
import pytest

from saefast.evaluation.steering.prediction import (
    logistic_weights,
    predictions,
    random_effects,
)

COVARIATES = ("rate", "strength", "cosine")


def world(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    covariates = {name: draw.normal(size=n) for name in COVARIATES}
    return draw.normal(size=n), np.arange(n) % 2, covariates


def test_the_logistic_regression_has_zero_slope_at_its_optimum() -> None:
    draw = np.random.default_rng(1)
    terms = draw.normal(size=(60, 3))
    labels = terms[:, 0] + 0.5 * draw.normal(size=60) > 0
    weights = logistic_weights(terms, labels)
    chance = 1 / (1 + np.exp(-(terms @ weights[:-1] + weights[-1])))
    np.testing.assert_allclose(terms.T @ (chance - labels) + weights[:-1], 0, atol=1e-8)
    assert chance.sum() == pytest.approx(labels.sum(), abs=1e-5)


def test_random_effects_by_hand() -> None:
    # Equal variances of 1 and values 0 and 4: their spread is 8 about a mean of 2, so that the
    # variance between them is (8 - 1) / (2 - 1) = 7.
    mean, error = random_effects(np.array([0.0, 4.0]), np.ones(2))
    assert mean == pytest.approx(2)
    assert error == pytest.approx(2.0)
    assert random_effects(np.array([1.0, 1.0]), np.ones(2))[1] == pytest.approx(0.5**0.5)


def test_a_predictor_of_success_is_found() -> None:
    noise, sae, covariates = world(2)
    signal = np.random.default_rng(9).normal(size=80)
    gain = signal + 0.3 * noise
    found = {
        (one.measure, one.by): one
        for one in predictions(
            gain, gain > 0, sae, {"signal": signal, "noise": noise[::-1].copy()}, covariates, 0
        )
    }
    for measure in ("spearman", "kendall tau b", "partial spearman"):
        true, false = found[measure, "signal"], found[measure, "noise"]
        assert true.p <= 0.002
        assert true.value.low > 0.4
        assert false.p > 0.05
        assert false.value.low < 0 < false.value.high
    assert found["auroc", "signal"].value.low > 0.9
    assert found["logistic auroc", "signal"].value.low > 0.85
    assert found["logistic auroc", "covariates"].value.low < 0.5
    assert found["logistic auroc", "all"].value.low > 0.8


def test_partial_correlations_hold_the_covariates_fixed() -> None:
    noise, sae, covariates = world(3, 200)
    gain = covariates["rate"] + 0.5 * noise
    proxy = covariates["rate"] + 0.5 * np.random.default_rng(5).normal(size=200)
    found = {
        one.measure: one
        for one in predictions(gain, gain > 0, sae, {"proxy": proxy}, covariates, 0)
        if one.by == "proxy"
    }
    assert found["spearman"].value.low > 0.5
    assert abs(found["partial spearman"].value.value) < 0.3


def test_joint_correlations_hold_each_other_fixed() -> None:
    """Both follow the gain alone; given the cause, its proxy says nothing, and not the reverse."""
    noise, sae, covariates = world(6, 200)
    draw = np.random.default_rng(8)
    cause = draw.normal(size=200)
    given = {"proxy": cause + 0.5 * draw.normal(size=200), "cause": cause}
    given["proxy"][:3] = np.nan
    gain = cause + 0.5 * noise
    arguments = gain, gain > 0, sae, given, covariates, 0
    found = {
        (one.measure, one.by): one for one in predictions(*arguments, together=("proxy", "cause"))
    }
    assert found["spearman", "proxy"].value.low > 0.5
    assert abs(found["joint spearman", "proxy"].value.value) < 0.2
    assert found["joint spearman", "proxy"].p > 0.05
    assert found["joint spearman", "cause"].value.low > 0.4
    assert found["joint spearman", "cause"].p <= 0.002
    assert {one.n for one in found.values() if one.measure == "joint spearman"} == {197}
    # By the formula of first-order partial correlations, averaged over the two SAEs.
    known = ~np.isnan(given["proxy"])
    by_hand = []
    for one in (0, 1):
        part = known & (sae == one)
        a, b, c = (ranks_of(each[part]) for each in (given["proxy"], gain, cause))
        ab, ac, bc = (np.corrcoef(*pair)[0, 1] for pair in ((a, b), (a, c), (b, c)))
        by_hand.append((ab - ac * bc) / ((1 - ac**2) * (1 - bc**2)) ** 0.5)
    assert min(by_hand) <= found["joint spearman", "proxy"].value.value <= max(by_hand)
    assert not any(one.measure == "joint spearman" for one in predictions(*arguments))
    alone = predictions(*arguments, together=("proxy",))
    assert not any(one.measure == "joint spearman" for one in alone)


def ranks_of(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)


def test_too_few_latents_of_an_sae_have_no_partial_correlation() -> None:
    """Three covariates explain four latents completely: residuals would correlate by rounding."""
    noise, _, covariates = world(4, 24)
    for latents, expected in ((4, False), (6, False), (8, True)):
        n = 24 // latents * latents
        found = predictions(
            noise[:n],
            noise[:n] > 0,
            np.arange(n) % (n // latents),
            {"signal": noise[::-1][:n].copy()},
            {name: values[:n] for name, values in covariates.items()},
            0,
        )
        measures = {one.measure for one in found if one.by == "signal"}
        assert ("partial spearman" in measures) == expected
        assert "spearman" in measures


def test_permutation_tests_are_right_under_the_null() -> None:
    low = 0
    for seed in range(40):
        noise, sae, covariates = world(seed + 100, 24)
        other = np.random.default_rng(seed).normal(size=24)
        found = predictions(noise, noise > 0, sae, {"other": other}, covariates, seed)
        low += next(one.p for one in found if one.measure == "spearman") <= 0.2
    assert 2 <= low <= 16


def test_few_or_constant_values_give_no_correlation() -> None:
    noise, sae, covariates = world(0, 9)
    assert not predictions(noise, noise > 0, sae, {"rate": noise}, covariates, 0)
    noise, sae, covariates = world(0, 40)
    found = predictions(noise, noise > 0, sae, {"flat": np.ones(40)}, covariates, 0)
    assert "flat" not in {one.by for one in found}
