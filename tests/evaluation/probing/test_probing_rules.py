"""Selection of latents and probes of each rule, against their definitions."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tolerance import assert_same_bits
from torch import Tensor

from saefast import SAE
from saefast.evaluation.intervals import auroc
from saefast.evaluation.probing.best_latents import agreement, hypergeometric_tail
from saefast.evaluation.probing.logistic import Fit, fit_l2
from saefast.evaluation.probing.one_task import Controls, Split, probe_latents, probe_wide
from saefast.evaluation.probing.rules import (
    CHOICES,
    RULES,
    choice_scores,
    cross_validated,
    folds_of,
    largest,
    lasso_search,
    standardised,
)

_L1 = np.logspace(5, -5, 10).tolist()


def pooled(n: int = 90, m: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make rarely active latents, some of them more active in one class, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, generator=generator) < 0.5
    x = torch.randn(n, m, generator=generator) - torch.linspace(0.2, 2.5, m)
    x[:, ::3] += labels[:, None] * torch.linspace(0, 2, len(range(0, m, 3)))
    return x.relu() * torch.logspace(-2, 2, m), labels


def test_t_equals_welchs() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, labels = pooled()
    expected = stats.ttest_ind(
        x[labels].double().numpy(), x[~labels].double().numpy(), equal_var=False
    ).statistic
    expected = np.nan_to_num(expected)  # 0 for a latent that is never active
    found = choice_scores("t", x, labels[None], ~labels[None])[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7)


def test_differences_match_the_means() -> None:
    x, labels = pooled()
    x[:, 7] = 0
    difference = x[labels].double().mean(0) - x[~labels].double().mean(0)
    typical = [
        float(column[column != 0].mean()) if (column != 0).any() else 0 for column in x.T.double()
    ]
    for name, expected in [
        ("difference", difference),
        ("normalised", difference / (torch.tensor(typical) + 1e-6)),
    ]:
        found = choice_scores(name, x, labels[None], ~labels[None])[0]
        torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", CHOICES)
def test_divisions_are_scored_separately(name: str) -> None:
    x, labels = pooled()
    train = torch.arange(len(x)) % 3 > 0
    other = labels.roll(5)
    both = choice_scores(
        name, x, torch.stack([labels & train, other]), torch.stack([~labels & train, ~other])
    )
    alone = choice_scores(name, x[train], labels[train][None], ~labels[train][None])
    torch.testing.assert_close(both[:1], alone, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(
        both[1:], choice_scores(name, x, other[None], ~other[None]), rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("name", ["t", "normalised"])
def test_scale_of_a_latent_does_not_matter(name: str) -> None:
    x, labels = pooled()
    x = x * 1000
    scale = torch.logspace(-1, 1, x.shape[1])
    plain, scaled = (
        choice_scores(name, its, labels[None], ~labels[None]) for its in (x, x * scale)
    )
    torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=1e-6)


def test_largest_takes_the_first_of_equal_and_only_allowed_latents() -> None:
    scores = torch.tensor([[1.0, -3, 3, 0, 2]])
    assert largest(scores, 3).tolist() == [[1, 2, 4]]
    allowed = torch.tensor([True, False, False, True, False])
    assert largest(scores, 3, allowed).tolist() == [[0, 3, -1]]
    assert largest(scores, 9).shape == (1, 5)


def test_folds_are_stratified() -> None:
    labels = torch.arange(53) % 3 == 0
    folds = folds_of(labels, seed=1)
    for value in (False, True):
        counts = torch.bincount(folds[labels == value], minlength=5)
        assert int(counts.max() - counts.min()) <= 1
    assert not torch.equal(folds, folds_of(labels, seed=2))


def test_one_latent_is_scored_by_itself() -> None:
    x, labels = pooled()
    train = torch.arange(len(x)) % 3 > 0
    rising = x[:, [39]]
    falling = -rising
    for column in (rising, falling):
        (decision,) = cross_validated(
            column[train][None], labels[train][None], column[~train][None], 0
        )
        assert auroc(labels[~train], decision) == auroc(labels[~train], rising[~train, 0])


def test_several_latents_are_standardised_and_penalised_by_cross_validation() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    x, labels = pooled(n=150)
    train = torch.arange(len(x)) % 3 > 0
    columns = x[:, [0, 12, 33, 39]]
    (decision,) = cross_validated(
        columns[train][None], labels[train][None], columns[~train][None], 4
    )
    inside, outside = standardised(columns[train], columns[~train])
    np.testing.assert_allclose(inside.std(0, correction=0), 1)
    model = sklearn.LogisticRegressionCV(
        Cs=np.logspace(-3, 1, 5),
        cv=selection.PredefinedSplit(folds_of(labels[train], 4).numpy()),
        scoring="neg_log_loss",
        solver="newton-cholesky",
        tol=1e-9,
        use_legacy_attributes=False,
        l1_ratios=(0,),
    ).fit(inside.numpy(), labels[train].numpy())
    np.testing.assert_allclose(
        decision.numpy(), model.decision_function(outside.numpy()), rtol=1e-4, atol=1e-5
    )


def test_the_lasso_search_equals_a_loop_over_sklearn() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, labels = pooled(n=300)
    columns = x[:, [0, 12, 24, 33]].double()
    edge = 300 - 60

    def fitted(c: float, rows: slice) -> Any:
        model = sklearn.LogisticRegression(
            C=c, l1_ratio=1, solver="liblinear", tol=1e-9, max_iter=10_000, intercept_scaling=1e3
        )
        return model.fit(columns[rows].numpy(), labels[rows].numpy())

    values = [
        auroc(labels[edge:], fitted(c, slice(edge)).decision_function(columns[edge:].numpy()))
        for c in _L1
    ]
    model = fitted(_L1[int(np.argmax(values))], slice(None))
    found = lasso_search(columns, labels, seed=0)
    np.testing.assert_allclose(
        found.decision(columns).numpy(),
        model.decision_function(columns.numpy()),
        rtol=1e-2,
        atol=0.02,
    )


def test_few_examples_use_six_folds() -> None:
    x, labels = pooled(n=60)
    columns = x[:, [0, 12, 39]].double()
    assert_same_bits(
        lasso_search(columns, labels, 3).weight, lasso_search(columns, labels, 3).weight
    )
    assert lasso_search(columns, labels, 3).weight.isfinite().all()


def split_of(labels: Tensor, seed: int = 0) -> Split:
    return Split(labels, torch.arange(len(labels)) % 3 == 0, seed)


def test_the_rule_of_saebench_fits_unscaled_latents_with_c_one() -> None:
    x, labels = pooled()
    split = split_of(labels)
    found = probe_latents(x, split, RULES["saebench"], [2])
    train = ~split.test
    difference = (x[train & labels].mean(0) - x[train & ~labels].mean(0)).abs()
    best = difference.argsort(descending=True)[:2]
    assert found.best.tolist() == best.tolist()
    fit = fit_l2(x[train][:, best][None], labels[train][None], torch.ones(1))
    decision = Fit(fit.weight[0, 0], fit.intercept[0, 0]).decision(x[split.test][:, best])
    assert found.value[2] == float(((decision > 0) == labels[split.test]).double().mean())


def test_intervals_of_permuted_labels_cover_one_half() -> None:
    """Random labels: 95 % intervals of AUROC contain .5 in about 95 of 100 runs."""
    x, _ = pooled(n=150, m=30)
    held = {1: 0, 5: 0}
    runs = 150
    for run in range(runs):
        labels = torch.rand(len(x), generator=torch.Generator().manual_seed(run)) < 0.5
        found = probe_latents(x, split_of(labels, run), RULES["saefast"], [1, 5])
        for k in held:
            held[k] += found.interval[k].low <= 0.5 <= found.interval[k].high
    for k, count in held.items():
        assert 0.90 <= count / runs <= 0.99, k


def test_selection_on_the_test_part_would_be_detected() -> None:
    """The mean over random labels is .5; it is larger if the selection uses the test part."""
    x, _ = pooled(n=90, m=200)
    honest, peeking = [], []
    for run in range(40):
        labels = torch.rand(len(x), generator=torch.Generator().manual_seed(run)) < 0.5
        split = split_of(labels, run)
        honest.append(probe_latents(x, split, RULES["saefast"], [1]).value[1])
        score = choice_scores("t", x, labels[None], ~labels[None])[0]
        best = int(score.abs().argmax())
        peeking.append(auroc(labels[split.test], x[split.test, best] * score[best].sign()))
    assert abs(np.mean(honest) - 0.5) < 0.04
    assert np.mean(peeking) > 0.6


def test_controls_are_below_the_best_latents() -> None:
    x, labels = pooled(n=300)
    half = torch.arange(x.shape[1]) % 2 == 0
    controls = Controls(draws=12, groups={"even": half, "odd": ~half})
    found = probe_latents(x, split_of(labels), RULES["saefast"], [1, 3], controls)
    for k in (1, 3):
        assert found.random[k] < found.value[k] - 0.05
        assert abs(found.permuted[k] - 0.5) < 0.1
        assert max(found.groups[name][k] for name in ("even", "odd")) <= found.value[k] + 0.05
    best = int(found.best[0])
    own = "even" if half[best] else "odd"
    assert found.groups[own][1] == found.value[1]
    assert abs(sum(found.shares.values()) - 1) < 1e-12
    mass = x.double().sum(0)
    order = mass.argsort().argsort()
    assert best not in found.near.tolist()
    assert all(abs(int(order[near] - order[best])) <= 10 for near in found.near)


def test_a_group_without_latents_has_no_score() -> None:
    x, labels = pooled()
    controls = Controls(draws=2, groups={"none": torch.zeros(x.shape[1], dtype=torch.bool)})
    found = probe_latents(x, split_of(labels), RULES["saefast"], [1], controls)
    assert np.isnan(found.groups["none"][1])
    assert found.shares["none"] == 0


def test_draws_match_the_given_mass() -> None:
    x, labels = pooled()
    only = torch.zeros(x.shape[1])
    only[[3, 5, 8]] = 1.0
    group = torch.arange(x.shape[1]) == 3
    controls = Controls(draws=12, groups={"g": group}, mass=only)
    found = probe_latents(x, split_of(labels), RULES["saefast"], [1], controls)
    alone = []
    for latent in (3, 5, 8):
        mask = torch.arange(x.shape[1]) == latent
        its = probe_latents(
            x, split_of(labels), RULES["saefast"], [1], Controls(draws=1, groups={"l": mask})
        )
        alone.append(its.groups["l"][1])
    assert min(alone) <= found.groups["g:mass"][1] <= max(alone)
    assert found.shares["g"] == pytest.approx(1 / 3)


def test_a_wide_probe_finds_a_property_of_no_single_column() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(240) % 2 == 0
    x = torch.randn(240, 300, generator=generator)
    x += (labels.double()[:, None] - 0.5).float() * 0.6
    value, interval = probe_wide(x, True, split_of(labels), RULES["saefast"])
    assert value > 0.99
    assert interval.low < value <= interval.high
    counts = (torch.rand(240, 50, generator=generator) < 0.2).float()
    counts[:, 7] = labels
    assert probe_wide(counts, False, split_of(labels), RULES["saefast"])[0] > 0.95
    nothing, _ = probe_wide(torch.ones(240, 3), True, split_of(labels), RULES["saefast"])
    assert nothing == 0.5


def test_the_hypergeometric_tail_equals_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for hits, drawn, marked, total in [
        (3, 6, 40, 100),
        (0, 6, 40, 100),
        (6, 6, 40, 100),
        (1, 3, 0, 9),
    ]:
        expected = stats.hypergeom.sf(hits - 1, total, marked, drawn)
        found = hypergeometric_tail(hits, drawn, marked, total)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_best_latents_of_abstopk_match_up_to_sign() -> None:
    best, random = [[0, 1, 2]] * 2, [[torch.arange(3)] * 3] * 2
    for variant, expected in (("abstopk", 1.0), ("topk", 0.0)):
        saes = [SAE(26, 26, variant=variant, k=2, seed=0) for _ in range(2)]
        with torch.no_grad():
            saes[1].W_dec.copy_(-saes[0].W_dec)
        found, chance = agreement(saes, best, random)
        assert found.tolist() == chance.tolist() == [[expected] * 3]
