"""Rules of choosing latents and fitting probes: saefast's, SAEBench's and sae-probes'."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saefast.activations.order import permutation
from saefast.evaluation.intervals import Interval, auroc, auroc_interval, proportion_interval
from saefast.evaluation.probing.logistic import Fit, choose_penalty, fit_l1, fit_l2

_PENALTIES = torch.logspace(-3, 1, 5, dtype=torch.float64)
_FOLDS = 5
_FEW, _FEW_FOLDS, _MOST_LEFT_OUT = 128, 6, 100  # of sae-probes
_L1_PENALTIES = np.logspace(5, -5, 10)
_NOTHING = 1e-12  # share of a latent's mean square that is added to its squared standard error

Decide = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Measure:
    """Score of the decisions on the test part."""

    name: str
    floor: float
    value: Callable[[Tensor, Tensor], float]
    """function of labels and decisions"""
    interval: Callable[[Tensor, Tensor], Interval]


CHOICES = ("t", "difference", "normalised")


@dataclass(frozen=True)
class ProbingRule:
    """Pooling and choice of latents, fit of probes, and measure."""

    pool: str
    choice: str
    decide: Decide
    measure: Measure


def choice_scores(name: str, latents: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Score every latent for several divisions of the examples.

    Latents with the largest absolute scores are chosen.

    Args:
        name: "difference" of means; "normalised", the difference divided by the latent's mean
            where it is active; or "t", divided by its standard error. Only "difference" depends on
            the scale of a latent.
        latents: [n, m].
        positive: [l, n] bool positive examples of each division.
        negative: [l, n] bool; examples in neither do not count.

    Returns:
        [l, m] float64; positive where a latent is larger in positive examples.
    """
    x = latents.double()
    masks = torch.stack([positive, negative]).double()
    count = masks.sum(2, keepdim=True)
    mean_positive, mean_negative = (masks @ x) / count
    difference: Tensor = mean_positive - mean_negative
    if name == "difference":
        return difference
    if name == "normalised":
        both = masks.sum(0)
        active = both @ (x != 0).double()
        typical = (both @ x.abs()) / (active + 1e-6)
        normalised: Tensor = difference / (typical + 1e-6)
        return normalised
    squares = (masks @ x.square()) / count
    variance = (squares - torch.stack([mean_positive, mean_negative]).square()).clamp(min=0)
    error = (variance / (count - 1).clamp(min=1)).sum(0) + _NOTHING * squares.mean(0)
    return torch.where(error > 0, difference / error.clamp(min=1e-300).sqrt(), 0.0)


def largest(scores: Tensor, k: int, allowed: Tensor | None = None) -> Tensor:
    """Return the k latents with the largest absolute scores.

    Args:
        scores: [..., m] scores of latents.
        k: number of latents.
        allowed: [m] or [..., m] bool latents to choose from; None: all.

    Returns:
        [..., k] int64, the first among equal ones; padded with -1.
    """
    size = scores.abs()
    if allowed is not None:
        size = torch.where(allowed, size, -1.0)
    found = size.sort(dim=-1, descending=True, stable=True)
    k = min(k, scores.shape[-1])
    return torch.where(found.values[..., :k] >= 0, found.indices[..., :k], -1)


def folds_of(labels: Tensor, seed: int, count: int = _FOLDS) -> Tensor:
    """Assign examples [n] to folds, each class evenly; return the indices of folds [n] int64."""
    folds = torch.zeros(len(labels), dtype=torch.int64)
    for value in (False, True):
        places = (labels == value).nonzero()[:, 0]
        order = torch.from_numpy(permutation(len(places), seed, int(value)))
        folds[places[order]] = torch.arange(len(places)) % count
    return folds


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Standardise columns by their mean and variance in the training part, [..., n, p] float64."""
    train, test = train.double(), test.double()
    mean = train.mean(-2, keepdim=True)
    spread = train.std(-2, keepdim=True, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    return (train - mean) / spread, (test - mean) / spread


def cross_validated(train: Tensor, labels: Tensor, test: Tensor, seed: int) -> Tensor:
    """Fit L2-penalised probes whose C is chosen in five folds; return decisions [b, tests].

    Args:
        train: [b, n, p] columns of the training part for each of b probes.
        labels: [b, n] bool.
        test: [b, tests, p] columns of the test part.
        seed: seed of the folds.

    Returns:
        [b, tests] decisions.
    """
    train, test = standardised(train, test)
    # With one column, the order of the decisions does not depend on C.
    if train.shape[2] == 1:
        side = torch.where(labels[..., None], train, 0.0).mean(1, keepdim=True).sign()
        return (test * side)[..., 0]
    folds = folds_of(labels[0], seed)
    penalty = choose_penalty(train, labels, _PENALTIES, folds)
    decisions = torch.zeros(test.shape[:2], dtype=torch.float64)
    for value in sorted(set(penalty.tolist())):
        chosen = penalty == value
        fit = fit_l2(train[chosen], labels[chosen], penalty[chosen][:1])
        odds = fit.weight @ test[chosen].mT + fit.intercept[..., None]
        decisions[chosen] = odds[:, 0]
    return decisions


def plain(train: Tensor, labels: Tensor, test: Tensor, seed: int) -> Tensor:
    """Fit L2-penalised probes with C = 1 on columns as they are; see `cross_validated`."""
    fit = fit_l2(train, labels, torch.ones(1, dtype=torch.float64))
    return (fit.weight @ test.double().mT + fit.intercept[..., None])[:, 0]


def lasso(train: Tensor, labels: Tensor, test: Tensor, seed: int) -> Tensor:
    """Fit L1-penalised probes on columns as they are, in random order; see `cross_validated`."""
    order = torch.from_numpy(permutation(train.shape[1], seed))
    return torch.stack(
        [
            lasso_search(x[order], y[order], seed).decision(its)
            for x, y, its in zip(train, labels, test, strict=True)
        ]
    )


def lasso_search(x: Tensor, labels: Tensor, seed: int) -> Fit:
    """Fit an L1-penalised probe whose C gives the largest AUROC on held-out examples.

    The last fifth of the examples, at most 100, is held out, or each of six folds in turn where
    there are fewer than 128 examples. Ties go to the weakest penalty.

    Args:
        x: [n, p] rows.
        labels: [n] bool.
        seed: seed of the folds.

    Returns:
        The fit on all examples with the chosen C.
    """
    n = len(x)
    if n < _FEW:
        folds = folds_of(labels, seed, _FEW_FOLDS)
        parts = [folds == number for number in range(_FEW_FOLDS)]
    else:
        parts = [torch.arange(n) >= n - min(n // 5, _MOST_LEFT_OUT)]
    starts: list[Fit | None] = [None] * len(parts)
    values = []
    # Neighbouring penalties have similar coefficients: each fit starts from the previous one.
    for penalty in _L1_PENALTIES[::-1]:
        found = []
        for number, part in enumerate(parts):
            fit = fit_l1(x[~part], labels[~part], float(penalty), starts[number])
            starts[number] = fit
            found.append(auroc(labels[part], fit.decision(x[part])))
        values.append(float(np.mean(found)))
    best = int(np.argmax(values[::-1]))
    return fit_l1(x, labels, float(_L1_PENALTIES[best]))


def accuracy(labels: Tensor, decisions: Tensor) -> float:
    """Return the share of examples [n] on the right side of zero."""
    return float(((decisions > 0) == labels).double().mean())


def _accuracy_interval(labels: Tensor, decisions: Tensor) -> Interval:
    return proportion_interval(int(((decisions > 0) == labels).sum()), len(labels))


_AUROC = Measure("auroc", 0.5, auroc, auroc_interval)
_ACCURACY = Measure("accuracy", 0.5, accuracy, _accuracy_interval)

RULES: Mapping[str, ProbingRule] = {
    "saefast": ProbingRule("mean", "t", cross_validated, _AUROC),
    "saebench": ProbingRule("mean", "difference", plain, _ACCURACY),
    "sae-probes": ProbingRule("last", "normalised", lasso, _AUROC),
}
"""Rules by `method`: own ones, and the rules of SAEBench 0.6 and sae-probes 0.4 on one split"""
