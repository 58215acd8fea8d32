"""Synthetic worlds have their stated distributions, and measures of truth recognise the truth."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.strategies import seeds
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import saefast
from saefast import Dictionary
from saefast.synthetic import (
    LowRankWorld,
    PlantedWorld,
    Strength,
    World,
    explain,
    keep_only,
    nested_world,
    recovery,
    sphere_world,
)
from saefast.synthetic.firing import Firing
from saefast.synthetic.world import BLOCK, world_generator

WORLDS = {
    "low rank": lambda: LowRankWorld.create(d=24, stable=12, rank=5, rare=30, rare_rate=0.01),
    "constant": lambda: sphere_world(200, 16, l0=3),
    "log uniform": lambda: sphere_world(200, 16, l0=3, firing="log_uniform"),
    "nested": lambda: nested_world(120, 16, trees=4, branching=3, depth=2, rank=6, contexts=16),
}
PLANTED = {
    "planted": lambda seed: PlantedWorld.create(64, 16, seed=seed),
    "low rank": lambda seed: LowRankWorld.create(d=24, stable=12, rank=5, rare=30, seed=seed),
    "sphere": lambda seed: sphere_world(200, 16, l0=3, seed=seed),
    "nested": lambda seed: nested_world(120, 16, trees=4, branching=3, depth=2, seed=seed),
}
worlds = pytest.mark.parametrize("make", WORLDS.values(), ids=WORLDS.keys())


def active(world: World, n: int, seed: int = 1) -> Tensor:
    """Return [n, m] bool, which true features fire, from the truth of the rows."""
    drawn = world.sample(n, seed=seed)
    there = drawn.values > 0
    dense = torch.zeros(n, world.m)
    dense.scatter_add_(1, drawn.indices, there.float())
    assert dense.max() <= 1, "a feature stands in a row twice"
    return dense > 0


def surely(count: Tensor, n: int, rate: Tensor) -> Tensor:
    """Return whether binomial counts agree with rates, up to a probability of 1e-7 each."""
    tail = stats.binom(n, rate.numpy())
    count = count.numpy()
    return torch.from_numpy((tail.cdf(count) > 1e-7) & (tail.sf(count - 1) > 1e-7))


@worlds
def test_features_fire_at_their_rates(make: Any) -> None:
    world = make()
    n = 40_000
    counts = active(world, n).sum(0)
    assert surely(counts, n, world.firing_rate).all()
    assert not surely(counts, n, world.firing_rate.flip(0) * 0.7).all()


@given(seed=seeds, m=st.integers(1, 40), contexts=st.integers(1, 3))
@settings(max_examples=15)
def test_any_rates_are_drawn(seed: int, m: int, contexts: int) -> None:
    generator = np.random.default_rng(seed)
    rates = generator.choice([0.0, 1e-6, 0.003, 0.2, 0.95], size=(contexts, m))
    n = 20_000
    fired = Firing(rates).draw(np.random.default_rng(seed + 1), n)
    counts = np.bincount(fired.feature, minlength=m)
    mean = torch.from_numpy(rates.mean(0))
    assert surely(torch.from_numpy(counts), n, mean).all()
    keys = fired.row * m + fired.feature
    assert (np.diff(keys) > 0).all()
    assert not counts[rates.max(0) == 0].any()


def test_features_of_a_sphere_fire_independently() -> None:
    world = sphere_world(6, 4, l0=1.5)
    n = 40_000
    fires = active(world, n)
    patterns = (fires * 2 ** torch.arange(6)).sum(1).bincount(minlength=64)
    bits = (torch.arange(64)[:, None] >> torch.arange(6)) & 1
    chance = torch.where(bits == 1, 0.25, 0.75).prod(1) * n
    assert stats.chisquare(patterns.numpy(), chance.numpy()).pvalue > 1e-6


@worlds
def test_rows_equal_the_sum_of_their_true_features(make: Any) -> None:
    world = make()
    drawn = world.sample(500)
    dense = torch.zeros(500, world.m, dtype=torch.float64)
    dense.scatter_add_(1, drawn.indices, drawn.values.double())
    expected = dense @ world.features.double()
    if world.bias is not None:
        expected += world.bias.double()
    assert (drawn.x - expected).abs().max() < 1e-5
    assert torch.allclose(world.features.norm(dim=1), torch.ones(world.m))
    assert dense.any()


def test_strengths_have_the_requested_distribution() -> None:
    world = sphere_world(40, 8, l0=8)
    drawn = world.sample(4000)
    logs = drawn.values[drawn.values > 0].log().numpy()
    assert stats.kstest(logs, stats.norm(0, 0.25).cdf).pvalue > 1e-6
    means, spreads = torch.linspace(5, 4, 40), torch.linspace(0, 0.5, 40)
    normal = replace(world, strength=Strength(means, spreads, log=False)).sample(20_000)
    for feature in (0, 20, 39):
        values = normal.values[(normal.indices == feature) & (normal.values > 0)].double()
        deviation = float(spreads[feature])
        assert abs(values.mean() - means[feature]) < 6 * deviation / len(values) ** 0.5 + 1e-6
        assert abs(values.std() - deviation) < 6 * deviation / len(values) ** 0.5 + 1e-6


def test_the_subspace_is_orthogonal_to_other_features() -> None:
    world = LowRankWorld.create(d=40, stable=25, rank=7, rare=60)
    subspace, inside = world.subspace, world.in_subspace
    assert (subspace @ subspace.T - torch.eye(7)).abs().max() < 1e-6
    projected = (world.features @ subspace.T).norm(dim=1)
    assert (projected[inside] - 1).abs().max() < 1e-5
    assert projected[~inside].max() < 1e-5
    assert int(inside.sum()) == 60
    assert torch.linalg.matrix_rank(world.features[inside]) == 7
    assert world.rates[0, inside].unique().tolist() == [0.001]


def test_log_uniform_rates_equal_the_papers() -> None:
    rates = sphere_world(firing="log_uniform").firing_rate
    assert stats.kstest(rates.log10().numpy(), stats.uniform(-5.5, 4.3).cdf).statistic < 0.04
    assert abs(float(rates.sum()) - 20) < 2
    assert sphere_world().firing_rate.unique().tolist() == [0.00625]


def test_children_fire_only_with_their_parent_and_never_together() -> None:
    world = nested_world(120, 16, trees=4, branching=3, depth=2, rank=6, contexts=16)
    fires = active(world, 20_000)
    children = (world.parent >= 0).nonzero()[:, 0]
    assert len(children) == 4 * 12
    assert not (fires[:, children] & ~fires[:, world.parent[children]]).any()
    for parent in world.parent[children].unique():
        siblings = (world.parent == parent).nonzero()[:, 0]
        assert len(siblings) == 3
        assert fires[:, siblings].sum(1).max() <= 1
        # Children fire at their planted rate, given their parent.
        shares = world.rates[0, siblings]
        there = int(fires[:, parent].sum())
        assert surely(fires[:, siblings].sum(0), there, shares).all()
    generations = world.parent[world.parent[children]] >= 0
    assert generations.any()


def test_correlations_match_a_gaussian_copula() -> None:
    world = nested_world(
        12, 8, rates=(0.1, 0.4), trees=0, rank=3, loading=0.5, contexts=8192, seed=3
    )
    # Joint rates of the pool, compared with two normal variables of that correlation.
    joint = world.rates.T @ world.rates / len(world.rates)
    n = 40_000
    fires = active(world, n)
    counts = (fires.double().T @ fires.double())[~torch.eye(12, dtype=torch.bool)]
    planted = joint[~torch.eye(12, dtype=torch.bool)]
    assert surely(counts, n, planted).all()
    generator = world_generator(3)
    torch.randn(12, 8, generator=generator)  # the directions, drawn before the loadings
    torch.randperm(12, generator=generator)
    loadings = 0.5 * torch.randn(12, 3, generator=generator, dtype=torch.float64)
    loadings /= loadings.norm(dim=1, keepdim=True).clamp(min=0.95) / 0.95
    rho = loadings @ loadings.T
    apart = rho.fill_diagonal_(0).abs().max()
    assert apart > 0.5
    edge = stats.norm.ppf(1 - world.firing_rate.numpy())
    for i, j in ((0, 1), (2, 7), (3, 11), (4, 5)):
        both = stats.multivariate_normal([0, 0], [[1, rho[i, j]], [rho[i, j], 1]])
        assert abs(both.cdf([-edge[i], -edge[j]]) - float(joint[i, j])) < 0.01


def test_zipf_rates_are_exact_over_the_pool() -> None:
    world = nested_world(300, 8, exponent=1.0, trees=0, rank=5, contexts=32)
    rank = torch.arange(1, 301, dtype=torch.float64)
    law = (1 / rank - 1 / 300) / (1 - 1 / 300) * (0.4 - 5e-4) + 5e-4
    assert (world.firing_rate - law).abs().max() < 1e-12
    assert world.rates.std(0).max() > 0.01


@worlds
def test_rows_do_not_depend_on_threads_or_earlier_draws(make: Any, torch_threads: None) -> None:
    whole = make().sample(2 * BLOCK + 100)
    torch.set_num_threads(1)
    alone = make().sample(300, start=BLOCK - 100)
    torch.set_num_threads(3)
    together = make().sample(2 * BLOCK + 100)
    for part, again in zip(whole, together, strict=True):
        assert_same_bits(part, again)
    assert_same_bits(alone.x, whole.x[BLOCK - 100 : BLOCK + 200])
    assert not torch.equal(whole.x[:100], make().sample(100, seed=2).x)
    assert not torch.equal(whole.x[:100], whole.x[BLOCK : BLOCK + 100])


@pytest.mark.parametrize("size", [1, 300, BLOCK, BLOCK + 1])
def test_batches_are_parts_of_one_stream_and_start_anywhere(size: int) -> None:
    world = WORLDS["constant"]()
    stream = world.batches(size, seed=5)
    batches = [next(stream) for _ in range(4)]
    expected = world.sample(4 * size, seed=5).x
    assert_same_bits(torch.cat([batch.x for batch in batches]), expected)
    assert np.array_equal(np.concatenate([b.rows for b in batches]), np.arange(4 * size))
    later = next(world.batches(size, seed=5, start=2))
    assert_same_bits(later.x, batches[2].x)
    assert later.where == batches[2].where
    pieces = [piece.x for piece in world.blocks(4 * size, seed=5)]
    assert_same_bits(torch.cat(pieces), expected)


def test_blocks_that_are_read_in_part_leave_no_trace() -> None:
    """A kept iterator holds no threads, and its end does not reset the caller's setting."""
    before, threads = torch.get_num_threads(), set(threading.enumerate())
    blocks = WORLDS["constant"]().blocks(20 * BLOCK)
    try:
        torch.set_num_threads(2)
        next(blocks)
        assert set(threading.enumerate()) == threads
        assert torch.get_num_threads() == 2
        torch.set_num_threads(3)
        blocks.close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_training_reads_the_world_and_resumes(tmp_path: Any) -> None:
    world = WORLDS["constant"]()
    config = saefast.TrainConfig(latents=32, k=3, tokens=20 * 64, batch_size=64)
    (sae,) = saefast.train_saes(world, config, progress=False)
    rows = world.sample(20 * 64, seed=0).x
    (again,) = saefast.train_saes(list(rows.split(64)), config, progress=False)
    assert_same_bits(sae.W_dec.detach(), again.W_dec.detach())
    saefast.train_saes(world, config, out=tmp_path, progress=False)
    other = sphere_world(200, 16, l0=3.01)
    with pytest.raises(ValueError, match="fingerprint"):
        saefast.train_saes(other, config, out=tmp_path, resume=True, progress=False)


@worlds
def test_a_fingerprint_identifies_the_world(make: Any) -> None:
    world = make()
    assert world.fingerprint == make().fingerprint
    changed = {
        world.fingerprint,
        replace(world, seed=9).fingerprint,
        replace(world, rates=world.rates * 0.999).fingerprint,
        replace(world, bias=torch.ones(world.d)).fingerprint,
    }
    assert len(changed) == 4


def test_the_true_dictionary_has_perfect_scores() -> None:
    world = sphere_world(60, 24, l0=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for rows in (world.features, world.features[order], 7 * world.features):
        found = recovery(rows, world)
        assert found.recovered == 1
        assert found.mcc == pytest.approx(1, abs=1e-6)
        assert found.uniqueness == 1
    assert torch.equal(recovery(world.features[order], world).truth, order)
    opposite = recovery(-world.features, world)
    assert opposite.mcc == pytest.approx(1, abs=1e-6)
    assert opposite.recovered == 0


def test_dead_and_duplicate_latents_are_counted() -> None:
    world = sphere_world(20, 24, l0=3)
    rows = torch.cat([world.features[:5], world.features[:5], torch.zeros(3, 24)])
    found = recovery(rows, world)
    assert found.recovered == 0.25
    assert found.uniqueness == 0.5
    assert found.truth.tolist() == [*range(5), *range(5), -1, -1, -1]
    silent = recovery(Dictionary(rows, firing_rate=torch.tensor([1.0] * 5 + [0.0] * 8)), world)
    assert silent.uniqueness == 1
    assert silent.mcc == pytest.approx(1, abs=1e-6)
    assert recovery(torch.zeros(4, 24), world).mcc == 0


def test_random_directions_score_their_null() -> None:
    # The mean largest cosine of 384 random directions in 128 dimensions is .259, of absolute ones
    # .276 (20 draws of such a mean are within .002 of each other).
    world = sphere_world(384, 128)
    generator = torch.Generator().manual_seed(5)
    found = recovery(torch.randn(384, 128, generator=generator), world)
    assert float(found.best.mean()) == pytest.approx(0.259, abs=0.006)
    assert found.recovered == 0
    assert 0.2 < found.mcc < 0.276
    # The nearest true features of random directions are 1 - 1/e of all.
    assert found.uniqueness == pytest.approx(1 - np.exp(-1), abs=0.08)


@worlds
def test_initial_saes_do_not_have_the_truth(make: Any) -> None:
    world = make()
    assert world.seed == 0
    found = recovery(saefast.SAE(world.d, world.m, k=1, seed=0), world)
    assert found.best.max() < 0.99
    assert found.recovered < 0.05


def identity_sae(world: World, scale: float = 1.0) -> saefast.SAE:
    """Return a ReLU SAE that is exact on every row of a world of orthogonal features."""
    sae = saefast.SAE(world.d, world.m, variant="relu", k=1)
    with torch.no_grad():
        sae.W_enc.copy_(scale * world.features)
        sae.W_dec.copy_(world.features)
        sae.b_enc.fill_(-1e-4)  # rounding makes silent features a little positive
    return sae


def orthogonal_world(m: int = 16) -> World:
    basis = torch.linalg.qr(torch.randn(m, m, generator=torch.Generator().manual_seed(0))).Q
    return World(basis, torch.full((1, m), 0.15, dtype=torch.float64))


def test_an_sae_with_the_true_features_is_explained() -> None:
    world = orthogonal_world()
    found = explain(identity_sae(world), world, rows=5000)
    assert found.explained_variance == pytest.approx(1, abs=1e-5)
    assert found.shrinkage == pytest.approx(1, abs=1e-3)
    assert found.mean_f1 == 1
    fires = active(world, 5000)
    assert torch.equal(found.firing_rate, fires.double().mean(0))
    assert found.l0 == pytest.approx(float(fires.sum()) / 5000)
    half = explain(identity_sae(world, 0.5), world, rows=5000)
    assert half.shrinkage == pytest.approx(0.5, abs=1e-3)
    # A quarter of the square of each row remains; the variance is about the mean row.
    rows = world.sample(5000).x.double()
    expected = 1 - 0.25 * rows.square().sum() / (rows - rows.mean(0)).square().sum()
    assert half.explained_variance == pytest.approx(float(expected), abs=1e-3)


def test_f1_is_of_the_nearest_true_feature() -> None:
    world = orthogonal_world()
    sae = identity_sae(world)
    with torch.no_grad():
        sae.W_dec[0] = world.features[1]  # fires with feature 0, but is called feature 1
        sae.W_dec[2] = -world.features[2]  # an opposite direction is the same feature
        sae.b_enc[3] = -1000.0  # never fires
    found = explain(sae, world, rows=5000)
    fires = active(world, 5000).double()
    both = float((fires[:, 0] * fires[:, 1]).sum())
    assert float(found.f1[0]) == pytest.approx(2 * both / float(fires[:, :2].sum()))
    assert float(found.f1[2]) == 1
    assert float(found.f1[3]) == 0
    assert found.mean_f1 == pytest.approx((14 + float(found.f1[0])) / 15)


def test_a_kept_part_of_features_explains_its_part() -> None:
    world = orthogonal_world()
    sae = identity_sae(world)
    masks = {"all": torch.ones(16) > 0, "none": torch.ones(16) < 0, "few": torch.arange(16) < 4}
    kept = keep_only(sae, world, masks, rows=5000)
    assert kept["all"] == explain(sae, world, rows=5000).explained_variance
    rows = world.sample(5000).x.double()
    total = (rows - rows.mean(0)).square().sum()
    assert kept["none"] == pytest.approx(float(1 - rows.square().sum() / total))
    rest = rows - (rows @ world.features[:4].double().T) @ world.features[:4].double()
    assert kept["few"] == pytest.approx(float(1 - rest.square().sum() / total), abs=1e-4)


def test_a_row_of_zeros_is_close_to_no_feature() -> None:
    world = PlantedWorld.create(10, 8)
    rows = torch.cat([world.features[:4] * 3, torch.zeros(1, 8)])
    best = world.best_cosine(rows)
    assert best[:4].tolist() == pytest.approx([1] * 4)
    assert torch.equal(best, world.best_cosine(rows[:4]).clamp(min=0))


@pytest.mark.parametrize("options", [{"normalise": "layer_norm"}, {"skip": True}])
def test_all_features_explain_as_much_as_an_sae_that_normalises_or_skips(options) -> None:
    world = orthogonal_world()
    sae = saefast.SAE(16, 24, k=3, seed=0, **options)
    if sae.skip:
        with torch.no_grad():
            sae.W_skip.copy_(torch.eye(16) / 2)
    kept = keep_only(sae, world, {"all": torch.ones(24) > 0}, rows=5000)
    assert kept["all"] == explain(sae, world, rows=5000).explained_variance


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: World(torch.eye(3), torch.ones(1, 3)), ValueError, "below 1"),
        (lambda: World(torch.eye(3), torch.zeros(1, 2)), ValueError, "one for each feature"),
        (lambda: World(torch.eye(3), torch.zeros(1, 3), seed=-1), ValueError, "seed"),
        (lambda: World([1.0], torch.zeros(1, 3)), TypeError, "features"),
        (lambda: PlantedWorld.create(4, 8), ValueError, "active must be from 1 to 4"),
        (lambda: PlantedWorld.create(0, 8), ValueError, "count"),
        (lambda: PlantedWorld.create(9, 8, noise=-1), ValueError, "noise"),
        (lambda: PlantedWorld.create(9, 8, seed=2**31), ValueError, "seed"),
        (lambda: sphere_world(9, 8, l0=2, seed=-1), ValueError, "seed"),
        (
            lambda: World(torch.eye(2), torch.full((1, 2), 0.1), parent=torch.tensor([1, -1])),
            ValueError,
            "earlier feature",
        ),
        (
            lambda: World(torch.eye(3), torch.full((1, 3), 0.6), parent=torch.tensor([-1, 0, 0])),
            ValueError,
            "at most 1",
        ),
        (lambda: LowRankWorld.create(rank=128), ValueError, "rank"),
        (lambda: LowRankWorld.create(rare=1.5), TypeError, "rare"),
        (lambda: sphere_world(firing="often"), ValueError, "constant, log_uniform"),
        (lambda: nested_world(100), ValueError, "reduce trees"),
        (lambda: nested_world(rates=(0.4, 0.1)), ValueError, "rates"),
        (lambda: sphere_world(4, 4, l0=1).sample(0), ValueError, "at least 1"),
        (lambda: recovery(torch.eye(3), sphere_world(4, 4, l0=1)), ValueError, "width"),
    ],
)
def test_bad_worlds_raise(make: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("make", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize("seed", [0, 5])
def test_an_sae_of_the_seed_of_a_world_does_not_start_at_the_truth(make: Any, seed: int) -> None:
    features = make(seed).features
    sae = saefast.SAE(features.shape[1], len(features), k=2, seed=seed)
    cosines = (features * sae.W_dec.detach()).sum(1)
    assert cosines.abs().max() < 0.95
    assert cosines.mean().abs() < 0.2
