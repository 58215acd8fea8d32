"""Trained subspaces of editing: found where they are planted, and exact in their form."""

import math

import pytest
import torch
from helpers import linear_lm
from helpers.linear_lm import VALUES, D
from helpers.silent_bar import silent

from saefast.evaluation.editing.evaluation import edit
from saefast.evaluation.editing.interchange import Interchange
from saefast.evaluation.editing.knowledge import known_facts
from saefast.evaluation.editing.mean_differences import mean_differences
from saefast.evaluation.editing.one_attribute import ALL, NONE, RANDOM
from saefast.evaluation.editing.pairs import PARTS, Questions, tasks_of
from saefast.evaluation.editing.subspace import Subspace, trained_subspace
from saefast.lm import find_site


@pytest.fixture(scope="module")
def world():
    """Return a model whose attributes share all coordinates, and the task of the first one."""
    model = linear_lm.linear_lm(turned=True)
    known = known_facts(model, linear_lm.facts(), progress=False)
    questions = Questions(model.tokenizer)
    tasks, _ = tasks_of(known.kinds[0], questions, pairs=dict.fromkeys(PARTS, 60), least=40, seed=0)
    runs = Interchange(model, find_site(model.model, 0), questions.listed, 32)
    return model, known, runs, tasks[0]


def trained(world, seed: int = 0, **settings) -> Subspace:
    _, _, runs, task = world
    return trained_subspace(runs, task.pairs["train"], seed=seed, bar=silent(), **settings)


@pytest.fixture(scope="module")
def from_means(world) -> Subspace:
    _, _, runs, task = world
    axes = mean_differences(runs, task.pairs["train"], linear_lm.true_sae(turned=True))
    return trained(world, start=axes.W_dec)


def test_the_subspace_of_an_attribute_is_found(from_means: Subspace) -> None:
    """Values of an attribute differ in V - 1 directions; the others must be left out."""
    axes = from_means.axes[from_means.chosen]
    true = linear_lm.directions(turned=True).double()
    first, others = true[:VALUES], true[VALUES:]
    differing = torch.linalg.svd(first - first.mean(0)).Vh[: VALUES - 1]
    assert float((differing @ axes.T).square().sum(1).min()) > 0.85
    assert float((others @ axes.T).square().sum(1).mean()) < 0.05
    # Coordinates of the model alone hold no such subspace.
    assert float((differing[:, :VALUES]).square().sum(1).min()) < 0.6


def test_axes_are_orthonormal_and_none_is_reversed(world, from_means: Subspace) -> None:
    for found in (from_means, trained(world, epochs=2)):
        product = found.axes @ found.axes.T
        torch.testing.assert_close(product, torch.eye(D).double(), atol=1e-5, rtol=0)
    # From the coordinates, a few steps turn each axis by less than a right angle.
    assert bool((found.axes.diagonal() > 0.9).all())
    assert float((found.axes - torch.eye(D)).abs().max()) > 1e-3


def test_equal_seeds_give_equal_bits(world) -> None:
    first, again, other = (trained(world, seed, epochs=1) for seed in (0, 0, 1))
    assert torch.equal(first.axes, again.axes)
    assert torch.equal(first.chosen, again.chosen)
    assert not torch.equal(first.axes, other.axes)


def test_it_is_a_condition_of_its_own(world) -> None:
    model, known, _, _ = world
    sae = linear_lm.true_sae(turned=True)
    options = {"n": (1, VALUES), "pairs": 60, "progress": False}
    found = edit(model, 0, sae, known, mdas=True, diffmean=True, **options)
    assert found.overall("h", "mdas").value > 0.95
    assert VALUES - 1 <= found.overall("latents", "mdas").value <= VALUES + 1
    difference = found.overall("h", "trained - mdas")
    assert difference.value == pytest.approx(1 - found.overall("h", "mdas").value)
    # It has the floor and rivals of other conditions, in every row.
    for measure in ("h", "latents", "share of active latents"):
        row, other = (found.overall(measure, name) for name in ("mdas", "diffmean"))
        assert row.floor == other.floor == 0
        assert row.rival in (NONE, ALL, RANDOM)
        assert not math.isnan(row.rival_value)
    assert found.overall("latents", "mdas").rival_value == D
    # Its mask is trained: there is no choice among numbers of latents.
    at_one = {score.condition for score in found.scores if score.measure == "h at 1"}
    assert {"trained", "diffmean"} <= at_one
    assert "mdas" not in at_one
    plain = edit(model, 0, sae, known, diffmean=True, **options)
    rows = [score for score in found.scores if "mdas" not in score.condition]
    assert str(rows) == str(list(plain.scores))
