"""feature_function against dense brute force; controls and the regression on planted data."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.strategies import generator, random_sae, seeds
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast import SAE, FeatureFunction, feature_function, feature_statistics
from saefast.activations import TensorActivations
from saefast.evaluation.reconstruction import Spread, reconstruction
from saefast.evaluation.regression import regress_effect
from saefast.nulls.draws import mass_matched, size_matched
from saefast.sae import VARIANTS
from saefast.synthetic import PlantedWorld


def function(saes: Any, activations: Any, masks: Any, **options: Any) -> list[FeatureFunction]:
    return feature_function(saes, activations, masks, progress=False, **options)


def random_masks(m: int, seed: int) -> dict[str, Tensor]:
    some = torch.rand(m, generator=generator(seed)) < 0.4
    return {"some": some, "others": ~some, "all": some | True, "none": some & False}


def explained(rows: Tensor, reconstructed: Tensor) -> float:
    error = (rows - reconstructed).square().sum()
    return 1 - float(error / (rows - rows.mean(0)).square().sum())


@settings(max_examples=40)
@given(
    st.integers(2, 90),
    st.integers(1, 6),
    st.integers(1, 25),
    st.sampled_from(VARIANTS),
    st.integers(1, 100),
    seeds,
)
def test_groups_and_effects_match_the_dense_sum(n, d, m, variant, batch_size, seed):
    sae = random_sae(m, d, seed, variant).double()
    rows = torch.randn(n, d, generator=generator(seed)).double() + 5
    masks = random_masks(m, seed)
    activations = TensorActivations(rows, dtype=torch.float64)
    (found,) = function(sae, activations, masks, batch_size=batch_size)
    decoder, bias = sae.W_dec.detach(), sae.b_dec.detach()
    with torch.no_grad():
        code = sae.encode(rows).to_dense(m)
    near = {"rel": 1e-9, "abs": 1e-9}
    full = explained(rows, code @ decoder + bias)
    assert found.explained_variance == pytest.approx(full, **near)
    spread = (rows - rows.mean(0)).square().sum(1).mean()
    assert found.variance == pytest.approx(float(spread), **near)
    for row, (name, mask) in zip(found.groups, masks.items(), strict=True):
        assert (row.group, row.control, row.features) == (name, "", int(mask.sum()))
        kept, dropped = ((code * used) @ decoder + bias for used in (mask, ~mask))
        assert row.keep == pytest.approx(explained(rows, kept), **near)
        assert row.drop == pytest.approx(explained(rows, dropped), **near)
    error = rows - code @ decoder - bias
    without = error[:, None] + code[:, :, None] * decoder  # [n, m, d]: without each feature
    grown = without.square().sum(2).mean(0) - error.square().sum(1).mean()
    torch.testing.assert_close(found.effect, grown, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def planted() -> tuple[SAE, Tensor, dict[str, Tensor]]:
    """Make true latents and as many with random directions that fire equally."""
    world = PlantedWorld.create(48, 96, active=4, noise=0.1)
    sae = SAE(96, 96, k=8, seed=7)
    random = torch.randn(48, 96, generator=generator(3))
    with torch.no_grad():
        directions = torch.cat([world.features, random / random.norm(dim=1, keepdim=True)])
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions)
    stable = torch.arange(96) < 48
    return sae, world.sample(4000, 0), {"stable": stable, "unstable": ~stable}


def test_planted_stable_features_explain_the_variance(planted):
    sae, rows, masks = planted
    (statistics,) = feature_statistics(sae, rows, progress=False)
    (found,) = function(sae, rows, masks, mass=statistics.mass, draws=6)
    lines = {(line.group, line.control): line for line in found.summary()}
    assert set(lines) == {(name, c) for name in masks for c in ("", "size", "mass")}
    stable, unstable = lines["stable", ""], lines["unstable", ""]
    assert stable.keep > 0.5 > 0.2 > unstable.keep
    assert stable.drop < 0.2
    # Random features of equal number or mass contribute less than the planted ones and more than
    # the random directions.
    for control in ("size", "mass"):
        line = lines["stable", control]
        assert line.draws == 6
        assert line.keep + 3 * line.keep_std / 6**0.5 < stable.keep
        line = lines["unstable", control]
        assert line.keep - 3 * line.keep_std / 6**0.5 > unstable.keep
    effect = found.effect
    # Random directions only add to the error: it falls without most of them.
    assert effect[masks["stable"]].median() > 0.05
    assert effect[masks["unstable"]].median() < 0
    table = found.to_table()
    assert table.num_rows == 2 * (1 + 2 * 6)
    assert found.lost_variance[0] == effect[0] / found.variance


def test_each_sae_has_its_masks_and_batches_do_not_matter(planted):
    sae, rows, masks = planted
    other = random_sae(40, 96, 1)
    its = random_masks(40, 1)
    together = function([sae, other], rows, [masks, its], batch_size=1000)
    for alone, found in zip(
        (*function(sae, rows, masks), *function(other, rows, its)), together, strict=True
    ):
        torch.testing.assert_close(found.effect, alone.effect, rtol=1e-9, atol=1e-12)
        for row, expected in zip(found.groups, alone.groups, strict=True):
            for name in ("group", "control", "draw", "features"):
                assert getattr(row, name) == getattr(expected, name)
            assert (row.keep, row.drop) == pytest.approx((expected.keep, expected.drop), rel=1e-9)


@pytest.mark.usefixtures("torch_threads")
def test_same_bits_for_any_number_of_threads(planted):
    sae, rows, masks = planted
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found += function(sae, rows, masks)
    assert_same_bits(found[0].effect, found[1].effect)
    assert [row.keep for row in found[0].groups] == [row.keep for row in found[1].groups]


def test_the_reconstruction_equals_the_group_of_all_features(planted):
    sae, rows, masks = planted
    other = random_sae(40, 96, 1)
    found = reconstruction([sae, other], rows, batch_size=999, progress=False)
    functions = function([sae, other], rows, [masks, {}])
    statistics = feature_statistics([sae, other], rows, progress=False)
    for its, expected, stats in zip(found, functions, statistics, strict=True):
        assert its.explained_variance == pytest.approx(expected.explained_variance, rel=1e-9)
        assert_same_bits(its.firing_rate, stats.firing_rate)
        assert its.l0 == pytest.approx(float(stats.firing_rate.sum()))


def test_the_spread_of_rows_far_from_the_origin_is_precise():
    rows = torch.randn(500, 7, generator=generator(0)).double()
    spread = Spread()
    for part in (rows + 1e7).split(90):
        spread.add(part)
    expected = float((rows - rows.mean(0)).square().sum())
    assert spread.squares == pytest.approx(expected, rel=1e-7)
    assert spread.explained(expected / 4) == pytest.approx(0.75, rel=1e-6)


masses = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-6, 1.0), st.floats(1.0, 100.0)), min_size=1, max_size=80
)


@given(masses, seeds, seeds)
def test_controls_match_count_or_mass(mass, chosen, seed):
    mass = torch.tensor(mass, dtype=torch.float64)
    alive = mass > 0
    mask = torch.rand(len(mass), generator=generator(chosen)) < 0.5
    size = size_matched(mask, mass, seed, 0)
    assert int(size.sum()) == int((mask & alive).sum())
    assert alive[size].all()
    its = mass_matched(mask, mass, seed, 0)
    assert alive[its].all()
    target, got = float(mass[mask].sum()), float(mass[its].sum())
    assert got <= target * (1 + 1e-9)
    left_out = mass[alive & ~its]
    if len(left_out):
        assert target - got <= float(left_out.min()) * (1 + 1e-9) + 1e-9 * target
    assert torch.equal(its, mass_matched(mask, mass, seed, 0))


@pytest.mark.parametrize("match", [size_matched, mass_matched])
def test_features_are_drawn_equally_often(match):
    mass = torch.ones(40, dtype=torch.float64)
    mask = torch.arange(40) < 10
    often = torch.stack([match(mask, mass, 0, draw) for draw in range(400)]).sum(0)
    # 100 of 400 each: four standard deviations.
    assert ((often - 100).abs() < 4 * (400 * 0.25 * 0.75) ** 0.5).all()
    assert not torch.equal(match(mask, mass, 0, 0), match(mask, mass, 1, 0))


def planted_effects(n: int, random: np.random.Generator, factor: float) -> Any:
    """Make effects of rate and strength; a rare group has `factor` times the effect."""
    group = random.random(n) < 0.2
    rate = np.exp(random.normal(-6, 1, n) - 1.5 * group)
    mean = np.exp(random.normal(0, 0.5, n))
    # The group is noisier, so that plain standard errors would be far too small.
    noise = random.normal(0, 1, n) * np.where(group, 1.0, 0.2)
    effect = 3 * rate * mean**2 * np.where(group, factor, 1.0) * np.exp(noise)
    sign = np.where(random.random(n) < 0.1, -1, 1)
    return tuple(torch.from_numpy(values) for values in (effect * sign, group, rate, mean))


def test_the_regression_distinguishes_rare_from_different():
    random = np.random.default_rng(0)
    found = regress_effect(*planted_effects(4000, random, 1.0))
    assert found.coefficient["log_firing_rate"] == pytest.approx(1, abs=0.03)
    assert found.coefficient["log_mean"] == pytest.approx(2, abs=0.06)
    assert abs(found.coefficient["group"]) < 4 * found.standard_error["group"] < 0.2
    assert found.unadjusted == pytest.approx(-1.5, abs=6 * found.unadjusted_error)
    assert found.r_squared > 0.7
    other = regress_effect(*planted_effects(4000, random, 0.25))
    assert other.coefficient["group"] == pytest.approx(np.log(0.25), abs=0.1)


def test_the_interval_of_the_group_has_its_coverage():
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        found = regress_effect(*planted_effects(150, random, 0.5))
        z = (found.coefficient["group"] - np.log(0.5)) / found.standard_error["group"]
        inside += abs(z) < 1.96
    # 95 % of 400, four standard deviations.
    assert abs(inside - 380) < 4 * (400 * 0.95 * 0.05) ** 0.5


def test_silent_features_are_left_out_of_the_regression():
    effect, group, rate, mean = planted_effects(50, np.random.default_rng(2), 1.0)
    whole = regress_effect(effect[10:], group[10:], rate[10:], mean[10:])
    effect, rate = effect.clone(), rate.clone()
    effect[:5], rate[5:10] = 0, 0
    found = regress_effect(effect, group, rate, mean)
    assert (found.features, found.left_out) == (40, 10)
    assert found.coefficient == whole.coefficient
    with pytest.raises(ValueError, match="features with an effect must exist inside and outside"):
        regress_effect(effect, group & False, rate, mean)
    with pytest.raises(ValueError, match="rate must have size 50"):
        regress_effect(effect, group, rate[1:], mean)


def test_bad_input_raises(planted):
    sae, rows, masks = planted
    for groups, options, kind, words in (
        ([masks["stable"]], {}, TypeError, r"groups\[0\] must be a dict"),
        ([masks, masks], {}, ValueError, "groups must hold a dict .* for each of the 1 SAEs"),
        ({"a": masks["stable"].long()}, {}, TypeError, r"groups\[0\]\['a'\] must be a bool tensor"),
        ({"a": masks["stable"][1:]}, {}, ValueError, r"must have shape \(96,\)"),
        (masks, {"mass": torch.ones(3)}, ValueError, r"mass\[0\] must have shape \(96,\)"),
        (masks, {"draws": 0}, ValueError, "draws must be at least 1"),
    ):
        with pytest.raises(kind, match=words):
            function(sae, rows, groups, **options)
