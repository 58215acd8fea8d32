"""Sparse probing by the rules of SAEBench and sae-probes, against the packages themselves.

They are installed without their dependencies: `pip install --no-deps sae-bench==0.6.0
sae-probes==0.4.2 xgboost-cpu joblib`.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saefast import SAE
from saefast.evaluation.intervals import auroc
from saefast.evaluation.probing.logistic import Fit, fit_l2
from saefast.evaluation.probing.one_task import Split, probe_latents
from saefast.evaluation.probing.rows import TaskRows
from saefast.evaluation.probing.rules import RULES, choice_scores, largest, lasso_search
from saefast.integrations.sae_bench import SaeBenchSae

KS = (1, 2, 5, 16)


def peer(name: str) -> Any:
    """Import a module of a package, which warns and prints."""
    with quietly():
        return pytest.importorskip(name)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Ignore warnings of peers about deprecations of scikit-learn and solvers that stop early."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def pooled(n: int, m: int, seed: int, scale: float) -> tuple[Tensor, Tensor]:
    """Draw rarely active latents of very different scale, and labels that some of them predict."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, generator=generator) < 0.5
    x = torch.randn(n, m, generator=generator) - torch.linspace(0.2, 2, m)
    x[:, ::7] += labels[:, None] * torch.linspace(0.1, 1.0, len(range(0, m, 7)))
    return x.relu() * torch.logspace(-1, 1, m) * scale, labels


def converged(theirs: Any, **settings: Any) -> type:
    """Return their estimator with a solver that reaches the optimum; theirs stop early."""

    class Converged(theirs.LogisticRegression):  # type: ignore[misc,name-defined]
        def fit(self, x: Any, y: Any) -> Any:
            self.set_params(max_iter=100_000, tol=1e-9, **settings)
            return super().fit(x, y)

    return Converged


cases = pytest.mark.parametrize(
    ("n", "seed", "scale"), [(300, 0, 0.3), (400, 1, 1.0), (240, 2, 3.0)]
)


@cases
def test_saebench_selects_the_same_latents_with_the_same_accuracy(
    n: int, seed: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = peer("sae_bench.evals.sparse_probing.probe_training")
    exact = converged(theirs, solver="newton-cholesky")
    monkeypatch.setattr(theirs, "LogisticRegression", exact)
    x, labels = pooled(n, 60, seed, scale)
    test = torch.arange(n) % 4 == 0
    found = probe_latents(x, Split(labels, test, 0), RULES["saebench"], KS)
    for k in KS:
        mask = theirs.get_top_k_mean_diff_mask(x[~test], labels[~test].int(), k)
        mine = torch.ones(60, dtype=torch.bool)
        mine[found.best[:k]] = False
        assert torch.equal(mask, mine)
        chosen = theirs.apply_topk_mask_reduce_dim(x, mask)
        with quietly():
            _, accuracy = theirs.train_sklearn_probe(
                chosen[~test], labels[~test].int(), chosen[test], labels[test].int()
            )
        assert found.value[k] == pytest.approx(accuracy, abs=1e-12)


def test_saebench_pools_the_same_rows() -> None:
    theirs = peer("sae_bench.sae_bench_utils.activation_collection")
    generator = torch.Generator().manual_seed(3)
    sae = SAE(24, 96, k=6, seed=0)
    activations = torch.randn(9, 7, 24, generator=generator)
    lengths = torch.randint(1, 8, (9,), generator=generator)
    # Padding and special tokens have rows of zeros.
    real = torch.arange(7) < lengths[:, None]
    activations *= real[..., None]
    with torch.no_grad():
        latents = theirs.get_sae_meaned_activations(
            {"c": activations}, SaeBenchSae(sae, model_name="tiny", hook_layer=0), 4
        )["c"]
        means = theirs.create_meaned_model_activations({"c": activations})["c"]
    example, _ = real.nonzero().T
    rows = TaskRows(
        activations[real], example, torch.zeros(9, dtype=torch.bool), torch.arange(9),
        (torch.zeros(0, dtype=torch.int64),) * 2,
    )  # fmt: skip
    torch.testing.assert_close(rows.pooled(sae, "mean"), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows.pooled_rows("mean"), means, rtol=1e-5, atol=1e-5)


@cases
def test_sae_probes_selects_the_same_latents(n: int, seed: int, scale: float) -> None:
    theirs = peer("sae_probes.run_sae_evals")
    x, labels = pooled(n, 60, seed, scale)
    order = theirs.get_sorted_indices(x, labels.int().numpy(), theirs.mean_act_normalization)
    scores = choice_scores("normalised", x, labels[None], ~labels[None])[0]
    assert largest(scores, 60)[:50].tolist() == order[:50].tolist()


@cases
@pytest.mark.parametrize(("shipped", "k"), [(True, 1), (True, 2), *((False, k) for k in KS)])
def test_sae_probes_finds_the_same_auroc(
    n: int, seed: int, scale: float, k: int, shipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For many latents, its own solver stops before the optimum, 4e-3 of AUROC away."""
    theirs = peer("sae_probes.utils_training")
    if not shipped:
        exact = converged(theirs, solver="liblinear", intercept_scaling=1e3)
        monkeypatch.setattr(theirs, "LogisticRegression", exact)
        # Equal areas differ in the last digit by the order of sums, which would change the chosen
        # C.
        monkeypatch.setattr(theirs, "roc_auc_score", auroc)
    x, labels = pooled(n, 60, seed, scale)
    test = torch.arange(n) % 3 == 0
    scores = choice_scores("normalised", x, (labels & ~test)[None], (~labels & ~test)[None])[0]
    columns = x[:, largest(scores, k)].double()
    inside, outside = columns[~test], columns[test]
    with quietly():
        result = theirs.find_best_reg(
            inside.numpy(),
            labels[~test].int().numpy(),
            outside.numpy(),
            labels[test].int().numpy(),
            penalty="l1",
            seed=42,
        )
    fit = lasso_search(inside, labels[~test], seed=42)
    assert auroc(labels[test], fit.decision(outside)) == pytest.approx(
        result.metrics.test_auc, abs=1e-3
    )


@cases
def test_saebench_as_shipped_differs_only_near_the_boundary(
    n: int, seed: int, scale: float
) -> None:
    """Its solver stops at a gradient of 1e-4, an error of about a hundredth of log-odds."""
    theirs = peer("sae_bench.evals.sparse_probing.probe_training")
    x, labels = pooled(n, 5, seed, scale)
    with quietly():
        probe, _ = theirs.train_sklearn_probe(x, labels.int(), x, labels.int())
    fit = fit_l2(x[None], labels[None], torch.ones(1))
    mine = Fit(fit.weight[0, 0], fit.intercept[0, 0]).decision(x)
    np.testing.assert_allclose(mine.numpy(), probe.decision_function(x.numpy()), atol=0.03)
