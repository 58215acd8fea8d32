"""Prediction of the success of steering from properties of latents."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saefast.evaluation.intervals import NOWHERE, Floats, Interval, auroc_interval
from saefast.evaluation.rank_correlation import kendall, pearson, ranks, spearman

Statistic = Callable[[Floats, Floats], Floats]

_FEWEST = 10  # minimum number of latents for a prediction
_RESAMPLES = 500
_PERMUTATIONS = 999
_FOLDS = 5
_RIDGE = 1.0
_NEWTON_STEPS = 50
_NORMAL = 1.959963984540054
_LARGEST = 0.99999  # Fisher's transform of a correlation of 1 is infinite
_PAIRS = 1 << 22  # pairs held in memory at once


class Prediction(NamedTuple):
    """Relation of one predictor, or of several together, to the gain of steering."""

    measure: str
    by: str
    """name of the predictor or of the set of predictors"""
    value: Interval
    p: float
    """two-sided p of the permutation test; NaN where there is none"""
    n: int
    """number of latents"""


def predictions(
    gain: Floats,
    success: NDArray[np.bool_],
    sae: NDArray[np.int64],
    predictors: Mapping[str, Floats],
    covariates: Mapping[str, Floats],
    seed: int,
    *,
    together: Sequence[str] = (),
) -> list[Prediction]:
    """Relate properties of latents to the gain of steering with them.

    Correlations are computed for each SAE; Fisher's transforms are combined by random effects
    (DerSimonian and Laird 1986), with variances from a bootstrap over latents. Permutations are
    within each SAE. The logistic regressions are fitted to four fifths of the latents and evaluated
    on the others, in turn.

    Args:
        gain: [n] gain of steering with each latent.
        success: [n] whether steering with it counts as a success.
        sae: [n] index of its SAE.
        predictors: by name, values [n]; NaN where unknown.
        covariates: by name, values [n] that are held fixed in partial correlations.
        seed: seed of resamples, permutations and folds.
        together: names of predictors; each of them gets a partial correlation that holds the others
            fixed, over the latents for which all are known.

    Returns:
        For each predictor "spearman", "kendall tau b", "partial spearman", "auroc" and
        "logistic auroc", whose regression includes the covariates; then "logistic auroc" of the
        covariates alone and of all, then "joint spearman" for those in `together`. Correlations are
        left out where no SAE has enough latents.
    """
    found: list[Prediction] = []
    known_everywhere = ~np.isnan(gain)
    for name, values in predictors.items():
        known = known_everywhere & ~np.isnan(values)
        if known.sum() < _FEWEST or np.ptp(values[known]) == 0:
            continue
        parts = _of_saes(known, sae)
        pairs = [(values[part], gain[part]) for part in parts]
        beside = {key: each for key, each in covariates.items() if each is not values}
        n = int(known.sum())
        for measure, (value, p) in (
            ("spearman", _combined(spearman, pairs, seed)),
            ("kendall tau b", _combined(kendall, pairs, seed)),
            ("partial spearman", _partial(values, gain, tuple(beside.values()), parts, seed)),
        ):
            if not np.isnan(value.value):
                found.append(Prediction(measure, name, value, p, n))
        found.append(
            Prediction("auroc", name, auroc_interval(success[known], values[known]), np.nan, n)
        )
        terms = [each[known] for each in (*beside.values(), values)]
        area = _logistic_auroc(np.stack(terms, 1), success[known], seed)
        found.append(Prediction("logistic auroc", name, area, np.nan, n))
    for name, chosen in (("covariates", covariates), ("all", {**covariates, **predictors})):
        known = known_everywhere & ~np.isnan(np.stack(list(chosen.values()))).any(0)
        if known.sum() >= _FEWEST:
            terms = [each[known] for each in chosen.values()]
            area = _logistic_auroc(np.stack(terms, 1), success[known], seed)
            found.append(Prediction("logistic auroc", name, area, np.nan, int(known.sum())))
    found += _joint({name: predictors[name] for name in together}, gain, sae, seed)
    return found


def random_effects(values: Floats, variances: Floats) -> tuple[float, float]:
    """Return the mean of values [k] with given variances, and its standard error.

    The variance between the values is estimated as by DerSimonian and Laird.
    """
    weights = 1 / variances
    mean = (weights @ values) / weights.sum()
    spread = weights @ (values - mean) ** 2
    scale = weights.sum() - (weights @ weights) / weights.sum()
    between = max(0.0, (spread - (len(values) - 1)) / scale) if scale > 0 else 0.0
    weights = 1 / (variances + between)
    return float((weights @ values) / weights.sum()), float(weights.sum() ** -0.5)


def logistic_weights(terms: Floats, labels: NDArray[np.bool_]) -> Floats:
    """Fit a logistic regression by Newton's method, with a penalty of half the squared weights.

    Args:
        terms: [n, p] values of the terms.
        labels: [n] classes.

    Returns:
        [p + 1] weights, the constant last; it is not penalised.
    """
    design = np.concatenate([terms, np.ones((len(terms), 1))], 1)
    penalty = np.full(design.shape[1], _RIDGE)
    penalty[-1] = 1e-9
    weights = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-(design @ weights)))
        slope = design.T @ (chance - labels) + penalty * weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            break
    return weights


def _joint(
    predictors: Mapping[str, Floats], gain: Floats, sae: NDArray[np.int64], seed: int
) -> Iterator[Prediction]:
    """Yield for each predictor the correlation with the gain while the others are held fixed."""
    if len(predictors) < 2:
        return
    known = ~np.isnan(gain)
    for values in predictors.values():
        known &= ~np.isnan(values)
    if known.sum() < _FEWEST:
        return
    for name, values in predictors.items():
        others = tuple(each for other, each in predictors.items() if other != name)
        value, p = _partial(values, gain, others, _of_saes(known, sae), seed)
        if not np.isnan(value.value):
            yield Prediction("joint spearman", name, value, p, int(known.sum()))


def _of_saes(known: NDArray[np.bool_], sae: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return for each SAE the indices of its known latents."""
    return [np.flatnonzero(known & (sae == one)) for one in np.unique(sae[known])]


def _partial(
    values: Floats,
    gain: Floats,
    fixed: Sequence[Floats],
    parts: Sequence[NDArray[np.int64]],
    seed: int,
) -> tuple[Interval, float]:
    """Return the rank correlation with the ranks of `fixed` held fixed, and the permutation p.

    Args:
        values: [n] predictor.
        gain: [n] gain of steering.
        fixed: values [n] each that are held fixed.
        parts: indices of each SAE's latents.
        seed: seed of resamples and permutations.
    """
    samples = []
    for part in parts:
        # Fisher's transform of a partial correlation has the variance 1 / (n - held - 3).
        if len(part) > len(fixed) + 3:
            terms = np.stack([ranks(each[part]) for each in fixed], 1)
            samples.append(
                (_residual(ranks(values[part]), terms), _residual(ranks(gain[part]), terms))
            )
    return _combined(pearson, samples, seed)


def _combined(
    statistic: Statistic, samples: list[tuple[Floats, Floats]], seed: int
) -> tuple[Interval, float]:
    """Return a correlation over several SAEs with its interval, and the permutation p."""
    draw = np.random.default_rng(seed)
    values, variances, used = [], [], []
    for a, b in samples:
        if len(a) <= 3:  # the variance of Fisher's transform is 1 / (n - 3)
            continue
        value = float(_fisher(statistic(a, b)))
        if np.isnan(value):
            continue
        picked = draw.integers(0, len(a), (_RESAMPLES, len(a)))
        again = _fisher(_in_blocks(statistic, a[picked], b[picked]))
        values.append(value)
        variances.append(max(float(np.nanvar(again)), 1e-4 / len(a)))
        used.append((a, b))
    if not values:
        return NOWHERE, float("nan")
    mean, error = random_effects(np.array(values), np.array(variances))
    interval = Interval(*(float(np.tanh(mean + sign * _NORMAL * error)) for sign in (0, -1, 1)))
    observed, by_chance = 0.0, np.zeros(_PERMUTATIONS)
    for (a, b), its in zip(used, values, strict=True):
        permuted = draw.permuted(np.tile(b, (_PERMUTATIONS, 1)), axis=1)
        drawn = _in_blocks(statistic, np.broadcast_to(a, permuted.shape), permuted)
        by_chance += len(a) * _fisher(drawn)
        observed += len(a) * its
    beyond = int((np.abs(by_chance) >= abs(observed) - 1e-12).sum())
    return interval, (1 + beyond) / (1 + _PERMUTATIONS)


def _in_blocks(statistic: Statistic, a: Floats, b: Floats) -> Floats:
    """Return the statistic [r] of rows a [r, n] and b [r, n], computed in blocks of rows."""
    rows = max(1, _PAIRS // a.shape[1] ** 2)
    parts = [
        statistic(a[first : first + rows], b[first : first + rows])
        for first in range(0, len(a), rows)
    ]
    return np.concatenate(parts)


def _fisher(correlation: Floats) -> Floats:
    bounded = np.clip(correlation, -_LARGEST, _LARGEST)
    return np.arctanh(bounded)


def _residual(values: Floats, terms: Floats) -> Floats:
    """Return the residual of a least-squares fit on the terms and a constant."""
    design = np.concatenate([terms, np.ones((len(terms), 1))], 1)
    left: Floats = values - design @ (np.linalg.pinv(design) @ values)
    return left


def _logistic_auroc(terms: Floats, success: NDArray[np.bool_], seed: int) -> Interval:
    """Return the AUROC of probabilities predicted for each fifth of the latents from the others."""
    if min(success.sum(), (~success).sum()) < _FOLDS:
        return NOWHERE
    standard = (terms - terms.mean(0)) / np.maximum(terms.std(0), 1e-12)
    order = np.random.default_rng(seed).permutation(len(success))
    # Each fold gets its share of both classes.
    order = order[np.argsort(success[order], kind="stable")]
    fold: NDArray[Any] = np.empty(len(success), dtype=np.int64)
    fold[order] = np.arange(len(success)) % _FOLDS
    score = np.zeros(len(success))
    for one in range(_FOLDS):
        inside = fold == one
        weights = logistic_weights(standard[~inside], success[~inside])
        score[inside] = standard[inside] @ weights[:-1] + weights[-1]
    return auroc_interval(success, score)
