"""Logistic regressions against scikit-learn and against the optimality conditions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from saefast.evaluation.probing.logistic import (
    Fit,
    choose_penalty,
    fit_l1,
    fit_l2,
    principal_coordinates,
)

linear_model = pytest.importorskip("sklearn.linear_model")


def problem(n: int, p: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-1, 1, p, dtype=torch.float64) + 0.5
    odds = x @ torch.randn(p, generator=generator, dtype=torch.float64)
    odds = odds - odds.median() + noise * torch.randn(n, generator=generator, dtype=torch.float64)
    return x, odds > 0


def of_sklearn(x: Tensor, labels: Tensor, c: float, **options: object) -> Fit:
    model = linear_model.LogisticRegression(C=c, tol=1e-10, max_iter=100_000, **options)
    model.fit(x.numpy(), labels.numpy())
    return Fit(torch.from_numpy(model.coef_[0]), torch.tensor(model.intercept_[0]))


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize(("n", "p"), [(60, 1), (200, 5), (90, 120)])
def test_fit_l2_equals_the_optimum_of_sklearn(n: int, p: int, c: float) -> None:
    x, labels = problem(n, p, seed=p)
    fit = fit_l2(x[None], labels[None], torch.tensor([c]))
    expected = of_sklearn(x, labels, c, solver="newton-cg" if p > 80 else "newton-cholesky")
    torch.testing.assert_close(fit.weight[0, 0], expected.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        Fit(fit.weight[0, 0], fit.intercept[0, 0]).decision(x), expected.decision(x),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_fit_l2_separates_separable_rows() -> None:
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None] * 1e3
    fit = fit_l2(x[None], (x[:, 0] > 0)[None], torch.tensor([1e6]))
    decision = Fit(fit.weight[0, 0], fit.intercept[0, 0]).decision(x)
    assert ((decision > 0) == (x[:, 0] > 0)).all()
    assert decision.isfinite().all()


def test_problems_and_variants_of_a_batch_are_independent() -> None:
    both = [problem(80, 3, seed) for seed in (1, 2)]
    x = torch.stack([x for x, _ in both])
    labels = torch.stack([y for _, y in both])
    c = torch.tensor([0.1, 10.0, 10.0])
    shares = torch.ones(3, 80)
    shares[2, :30] = 0
    fit = fit_l2(x, labels, c, shares)
    for number in range(2):
        for variant in range(3):
            rows = shares[variant] > 0
            alone = of_sklearn(
                x[number, rows], labels[number, rows], float(c[variant]), solver="newton-cholesky"
            )
            torch.testing.assert_close(
                fit.weight[number, variant], alone.weight, rtol=1e-5, atol=1e-7
            )


def test_choose_penalty_minimises_the_held_out_loss() -> None:
    x, labels = problem(120, 6, seed=5, noise=30.0)
    folds = torch.arange(120) % 5
    candidates = torch.logspace(-4, 2, 4, dtype=torch.float64)
    losses = []
    for c in candidates.tolist():
        total = 0.0
        for fold in range(5):
            out = folds == fold
            fit = of_sklearn(x[~out], labels[~out], c, solver="newton-cholesky")
            odds = fit.decision(x[out])
            total += float(
                torch.nn.functional.binary_cross_entropy_with_logits(
                    odds, labels[out].double(), reduction="sum"
                )
            )
        losses.append(total)
    chosen = choose_penalty(x[None], labels[None], candidates, folds)
    assert chosen.tolist() == [candidates[int(np.argmin(losses))]]
    assert 0 < int(np.argmin(losses)) < 3 or losses[0] < losses[-1]


@pytest.mark.parametrize("c", [1e-2, 0.3, 30.0])
@pytest.mark.parametrize("p", [1, 6, 30])
def test_fit_l1_satisfies_the_optimality_conditions(p: int, c: float) -> None:
    x, labels = problem(150, p, seed=p)
    fit = fit_l1(x, labels, c)
    slope = c * x.T @ (fit.decision(x).sigmoid() - labels.double())
    used = fit.weight != 0
    assert (slope.abs() <= 1 + 1e-5).all()
    torch.testing.assert_close(slope[used], -fit.weight[used].sign(), rtol=0, atol=1e-5)
    assert abs(float((fit.decision(x).sigmoid() - labels.double()).sum())) < 1e-5


def test_fit_l1_does_not_depend_on_the_start() -> None:
    x, labels = problem(150, 6, seed=3)
    start = fit_l1(x, labels, 100.0)
    torch.testing.assert_close(
        fit_l1(x, labels, 0.05, start).weight, fit_l1(x, labels, 0.05).weight, rtol=1e-5, atol=1e-7
    )


def test_principal_coordinates_keep_the_fit() -> None:
    x, labels = problem(90, 40, seed=4)
    train = torch.arange(90) < 30
    z = principal_coordinates(x, train)
    assert z.shape[1] == 29
    inner = fit_l2(z[train][None], labels[train][None], torch.tensor([0.5]))
    plain = fit_l2(x[train][None], labels[train][None], torch.tensor([0.5]))
    torch.testing.assert_close(
        Fit(inner.weight[0, 0], inner.intercept[0, 0]).decision(z[~train]),
        Fit(plain.weight[0, 0], plain.intercept[0, 0]).decision(x[~train]),
        rtol=1e-6, atol=1e-7,
    )  # fmt: skip
