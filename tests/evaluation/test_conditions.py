"""Rivals of trained SAEs have the same shape, sparsity and variant."""

import pytest
import torch

from saefast import SAE, TrainConfig, train_saes
from saefast.evaluation.conditions import rival_conditions, train_baselines

VARIANTS = ("topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated")


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(1000, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    return mixed + 3


def config(**changes):
    settings = {"latents": 96, "k": 6, "tokens": 3000, "batch_size": 300, "lr": 3e-3} | changes
    return TrainConfig(**settings)


def active(sae, rows):
    return float((sae.encode(rows).values != 0).sum()) / len(rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_untrained_saes_fire_equally_often(rows, variant):
    (sae,) = train_saes(rows, config(variant=variant), progress=False)
    (condition,) = rival_conditions(sae, rows[:500], ["untrained"])
    (untrained,) = condition.saes
    assert (untrained.variant, untrained.m, untrained.d) == (variant, sae.m, sae.d)
    assert active(untrained, rows[500:]) == pytest.approx(active(sae, rows[500:]), rel=0.15)
    cosine = torch.cosine_similarity(untrained.W_enc, sae.W_enc).abs().mean()
    assert cosine < 0.3


def test_untrained_saes_depend_on_the_seed_only(rows):
    saes = [SAE(24, 96, k=6, seed=seed) for seed in (0, 1)]
    (first,) = rival_conditions(saes, rows, ["untrained"])
    (again,) = rival_conditions(saes, rows, ["untrained"])
    (other,) = rival_conditions(saes, rows, ["untrained"], seed=1)
    assert torch.equal(first.saes[0].W_enc, again.saes[0].W_enc)
    assert not torch.equal(first.saes[0].W_enc, first.saes[1].W_enc)
    assert not torch.equal(first.saes[0].W_enc, other.saes[0].W_enc)


def test_a_permuted_decoder_keeps_codes_and_permutes_directions(rows):
    sae = SAE(24, 96, k=6, seed=0)
    (condition,) = rival_conditions(sae, rows, ["permuted_decoder"])
    (permuted,) = condition.saes
    ours, theirs = sae.encode(rows), permuted.encode(rows)
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(ours.values, theirs.values)
    assert not torch.equal(sae.W_dec, permuted.W_dec)
    assert torch.equal(sae.W_dec.sort(0).values, permuted.W_dec.sort(0).values)


@pytest.mark.parametrize("name", ["residual", "pca"])
def test_coordinates_lose_nothing(rows, name):
    (condition,) = rival_conditions(SAE(24, 96, k=6), rows[:500], [name])
    (sae,) = condition.saes
    held_out = rows[500:]
    assert active(sae, held_out) == 24
    assert torch.allclose(sae(held_out), held_out, atol=1e-2)


def test_coordinates_are_of_the_residual_and_of_principal_axes(rows):
    residual, pca = rival_conditions(SAE(24, 96, k=6), rows, ["residual", "pca"])
    dense = torch.zeros(len(rows), 24)

    def coordinates(sae):
        code = sae.encode(rows)
        return dense.scatter(1, code.indices, code.values)

    shifted = coordinates(residual.saes[0])
    assert torch.allclose(shifted - shifted.mean(0), rows - rows.mean(0), atol=1e-2)
    along = coordinates(pca.saes[0]).double()
    along -= along.mean(0)
    covariance = along.T @ along / len(rows)
    variances = covariance.diag()
    assert bool((variances[:-1] >= variances[1:] - 1e-3).all())
    off = covariance - torch.diag(variances)
    assert off.abs().max() < 1e-3 * variances.max()


def test_baselines_keep_their_directions(rows):
    frozen, soft, encoder = train_baselines(
        rows,
        config(seeds=(0, 1)),
        ["frozen_decoder", "soft_frozen", "frozen_encoder"],
        progress=False,
    )
    assert [len(each.saes) for each in (frozen, soft, encoder)] == [2, 2, 2]
    untouched = {"tokens": 300, "batch_size": 300, "lr": 1e-30, "seeds": (0, 1)}
    start = train_saes(rows, config(**untouched), progress=False)
    assert torch.equal(encoder.saes[1].W_enc, start[1].W_enc)
    cosine = torch.cosine_similarity(soft.saes[0].W_dec, start[0].W_dec).detach()
    assert float(cosine.min()) >= 0.8 - 1e-4
    assert float(cosine.max()) < 1 - 1e-4
    _, axes = torch.linalg.eigh(torch.cov(rows.T))
    spread = (frozen.saes[0].W_dec.detach() @ axes).square().mean(0)
    assert spread[-1] > 20 * spread[0]
    isotropic = (encoder.saes[0].W_enc.detach() @ axes).square().mean(0)
    assert isotropic[-1] < 5 * isotropic[0]


def test_a_frozen_decoder_learns_despite_a_dominant_direction(rows):
    outlier = rows.clone()
    outlier[:, 0] *= 30
    settings = {"seeds": (0,), "tokens": 9000, "k": 24}
    (frozen,) = train_baselines(outlier, config(**settings), ["frozen_decoder"], progress=False)
    with torch.no_grad():
        error = (frozen.saes[0](outlier) - outlier).square().sum()
    assert error < 0.2 * (outlier - outlier.mean(0)).square().sum()


def test_unknown_conditions_are_refused(rows):
    with pytest.raises(ValueError, match="names must be one of"):
        rival_conditions(SAE(24, 96, k=6), rows, ["random"])
    with pytest.raises(ValueError, match="names must be one of"):
        train_baselines(rows, config(), ["untrained"])
    assert train_baselines(rows, config(), []) == []
