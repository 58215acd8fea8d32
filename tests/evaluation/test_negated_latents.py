"""The direction of a latent of abstopk is arbitrary: negating its rows and bias changes nothing."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers.strategies import random_sae
from torch import Tensor

from saefast import SAE, activation_matches, feature_statistics
from saefast.evaluation.absorption.class_probes import columns_of
from saefast.evaluation.absorption.words import absorbed_words
from saefast.evaluation.explaining.firings import firings
from saefast.evaluation.probing.one_task import Controls, Split, probe_latents
from saefast.evaluation.probing.rules import RULES
from saefast.evaluation.reconstruction import reconstruction
from saefast.evaluation.row_sums import sums_of_sae

D, M, N = 12, 40, 300
X = torch.randn(N, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pair() -> tuple[SAE, SAE]:
    """Return an SAE of abstopk, and the same with every other latent negated."""
    sae = random_sae(M, D, 0, "abstopk", k=6)
    assert (sae.encode(X).values < 0).float().mean() > 0.2
    other = copy.deepcopy(sae)
    with torch.no_grad():
        for part in (other.W_enc, other.b_enc, other.W_dec):
            part[::2] *= -1
    other.b_enc.data[M // 2] = -torch.inf  # masked, which has no opposite
    return sae, other


def assert_same(found: Any, expected: Any) -> None:
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, Tensor):
            torch.testing.assert_close(other, value, equal_nan=True)
        else:
            assert other == value, name


def test_statistics_and_reconstruction(pair: tuple[SAE, SAE]) -> None:
    sae = pair[0]
    expected, found = feature_statistics(pair, X, tokens=torch.arange(N) % 7, progress=False)
    assert_same(found, expected)
    assert int(expected.fired.sum()) == N * sae.k
    assert_same(*reconstruction(pair, X, progress=False))
    sums = [sums_of_sae(each, [X[:100], X[100:]], X.mean(0)) for each in pair]
    assert sums[0].active.sum() == N * sae.k
    for first, second in zip(*sums, strict=True):
        torch.testing.assert_close(first, second)


def test_firings_that_are_explained_and_correlations(pair: tuple[SAE, SAE]) -> None:
    expected, found = firings(pair, X, progress=False)
    assert len(expected.value) == N * pair[0].k
    for name in ("starts", "row", "value"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    matches = activation_matches(pair, X, least_fires=2, progress=False)
    alive = matches.alive[0]
    assert (matches.matches[0, 1].partner[alive] == torch.arange(M)[alive]).all()


def test_random_latents_of_probes_are_matched_by_absolute_activation() -> None:
    x = torch.linspace(0.1, 6, M) * (torch.randn(N, M, generator=torch.Generator().manual_seed(3)))
    x += 3 * (torch.arange(M) % 2 * 2 - 1)
    labels = torch.arange(N) % 2 == 0
    x[labels, M // 2] += 9
    split = Split(labels, torch.arange(N) % 3 == 0, 0)
    controls = Controls(draws=8, groups={"first": torch.arange(M) < M // 2})
    expected, found = (
        probe_latents(x * flip, split, RULES["saefast"], [1, 3], controls)
        for flip in (1.0, torch.where(torch.arange(M) % 3 == 0, -1.0, 1.0))
    )
    assert found.shares == expected.shares
    assert 0 < expected.shares["first"] < 1
    assert torch.equal(found.near, expected.near)
    for name, values in expected.groups.items():
        assert found.groups[name] == pytest.approx(values), name


def test_absorption(pair: tuple[SAE, SAE]) -> None:
    probe = torch.randn(D, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        codes = [each.encode(X) for each in pair]
    expected, found = (
        absorbed_words(code, X, each.W_dec, probe, [1, 2, 3, 4])
        for code, each in zip(codes, pair, strict=True)
    )
    for first, second in zip(found, expected, strict=True):
        torch.testing.assert_close(first, second)
    assert expected.full.any()
    assert (expected.absorbers >= 0).any()
    latents = torch.arange(6)
    columns = [columns_of(code, latents, M) for code in codes]
    assert torch.equal(columns[0].abs(), columns[1].abs())
    assert (columns[0] < 0).any()
    assert torch.equal((columns[0] != 0).sum(), torch.isin(codes[0].indices, latents).sum())
