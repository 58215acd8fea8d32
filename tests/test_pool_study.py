"""Comparison of pools with their controls: measurements, cuts and the verdict."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.pools import directions, pooled
from helpers.strategies import generator
from hypothesis import given
from hypothesis import strategies as st

from saefast import (
    SAE,
    TrainConfig,
    evaluate_pooling,
    sae_from,
    train_saes,
)
from saefast.evaluation.reconstruction import Reconstruction
from saefast.pool.results import MethodResult, Outcome, PoolingStudy
from saefast.pool.study import _outcome
from saefast.synthetic import PlantedWorld


def test_a_pool_of_abstopk_is_compared_up_to_sign():
    """Negated latents are the same latents, in abstopk alone."""
    rates = torch.rand(24, generator=generator(0))
    for variant, share in (("abstopk", 1.0), ("topk", 0.0)):
        a, b = (SAE(32, 24, variant=variant, k=4, seed=0) for _ in range(2))
        with torch.no_grad():
            a.W_dec.copy_(torch.eye(32)[:24])
            b.W_dec.copy_(-a.W_dec)
        found = [Reconstruction(explained_variance=0.5, firing_rate=rates, l0=4.0)] * 2
        outcome = _outcome([a, b], found, 0.7)
        assert outcome.match_share == outcome.pw_mcc == share


WORLD = PlantedWorld.create(24, 32, active=3, noise=0.1)
ROWS, HELD_OUT = WORLD.sample(8000, 0), WORLD.sample(3000, 1)
SCRATCH = TrainConfig(
    latents=40, k=3, tokens=20_000, batch_size=256, lr=3e-3, seeds=(0, 1, 2, 3), auxk=None
)
TUNE = replace(SCRATCH, tokens=5000, lr=5e-4, seeds=(0,))


@pytest.fixture(scope="module")
def groups() -> list[list[SAE]]:
    saes = train_saes(ROWS, SCRATCH, progress=False)
    return [saes[:2], saes[2:]]


def study(groups: Any, pools: Any, **options: Any) -> PoolingStudy:
    settings = {"fine_tune": TUNE, "scratch": SCRATCH} | options
    return evaluate_pooling(groups, pools, ROWS, HELD_OUT, progress=False, **settings)


def test_fine_tuning_improves_a_pool(groups):
    found = pooled(groups[0], width=30)
    start = sae_from(found, k=3)
    (tuned,) = train_saes(ROWS, replace(TUNE, latents=30), initial=start, progress=False)
    error, less = (((sae(HELD_OUT).detach() - HELD_OUT) ** 2).sum() for sae in (start, tuned))
    assert less < error


def test_a_study_reports_its_measurements(groups):
    pools = [pooled(group, width=30) for group in groups]
    found = study(groups, pools)
    table = found.to_table().to_pydict()
    assert table["method"] == ["pooled", "pruned", "scratch", "single"]
    assert table["latents"] == [30, 30, 30, 40]
    assert table["tokens"] == [45_000, 25_000, 45_000, 20_000]
    assert len(set(table["equal_alive"])) == 1
    assert table["equal_alive"][0] <= min(table["alive"])
    single = found.results[-1]
    pair = [groups[0][0], groups[1][0]]
    spread = (HELD_OUT - HELD_OUT.mean(0)).square().sum()
    errors = [(sae(HELD_OUT).detach() - HELD_OUT).square().sum() for sae in pair]
    expected = [1 - float(error / spread) for error in errors]
    assert single.whole.explained_variance == pytest.approx(sum(expected) / 2, rel=1e-4)
    alive = [directions(sae)[sae.encode(HELD_OUT).to_dense(40).gt(0).any(0)] for sae in pair]
    cosines = alive[0] @ alive[1].T
    shares = [(cosines.amax(side) >= 0.7).double().mean() for side in (0, 1)]
    share = (shares[0] + shares[1]) / 2
    assert single.whole.match_share == pytest.approx(float(share), abs=1e-6)
    from scipy.optimize import linear_sum_assignment

    i, j = linear_sum_assignment(cosines.numpy(), maximize=True)
    assert single.whole.pw_mcc == pytest.approx(float(cosines[i, j].mean()), abs=1e-6)
    error = float(cosines[i, j].std(correction=0)) / len(i) ** 0.5
    assert single.whole.pw_mcc_error == pytest.approx(error, abs=1e-6)
    error = float(share * (1 - share) / min(cosines.shape)) ** 0.5
    assert single.whole.match_share_error == pytest.approx(error, abs=1e-6)


def test_the_verdict_is_negative_without_a_gain(groups):
    """Groups of copies: the pool equals one SAE, and so does an SAE cut to frequent latents."""
    copies = [[group[0]] * 2 for group in groups]
    found = study(
        copies, [pooled(group, width=30) for group in copies], fine_tune=replace(TUNE, lr=0.0)
    )
    assert not found.beaten["pruned"]
    assert not found.pays
    assert found.verdict.startswith("Pooling does not beat its controls.")
    assert "pruned (one SAE cut to its most frequent latents" in found.verdict


def test_the_verdict_is_positive_with_a_gain():
    """SAEs with the true features and more frequent noise features, which pooling removes."""
    world = PlantedWorld.create(24, 96, active=3, noise=0.05)
    groups = []
    for seed in (0, 10):
        saes = [SAE(96, 48, k=3, seed=seed + number) for number in range(3)]
        for sae in saes:
            with torch.no_grad():
                sae.W_dec[24:] = world.features
                sae.W_enc.copy_(sae.W_dec)
                sae.b_enc[:24] = 1.0
        groups.append(saes)
    pools = [pooled(group, width=24) for group in groups]
    still = replace(SCRATCH, latents=48, lr=0.0)
    found = evaluate_pooling(
        groups,
        pools,
        world.sample(2000, 0),
        world.sample(2000, 1),
        fine_tune=replace(TUNE, tokens=512, lr=0.0),
        scratch=still,
        scratch_tokens=512,
        progress=False,
    )
    assert found.pays, found.verdict
    assert found.verdict.startswith("Pooling beats every control.")
    assert found.results[0].whole.match_share == pytest.approx(1)
    assert found.results[0].whole.explained_variance > 0.7


def outcome_of(explained: float, share: float, mcc: float, *, error: float) -> Outcome:
    return Outcome(
        explained_variance=explained,
        match_share=share,
        pw_mcc=mcc,
        alive=10,
        match_share_error=error,
        pw_mcc_error=error,
    )


def result_of(method: str, outcome: Outcome) -> MethodResult:
    return MethodResult(method=method, latents=10, tokens=100, whole=outcome, equal=outcome)


@given(*[st.sampled_from([-0.05, -0.005, 0.0, 0.005, 0.05])] * 3)
def test_a_method_is_beaten_by_better_on_one_and_worse_on_no_measure(ev, share, mcc):
    def result(method: str, *figures: float) -> MethodResult:
        return result_of(method, outcome_of(*figures, error=0.0))

    base = (0.8, 0.7, 0.6)
    gained = (ev, share, mcc)
    found = PoolingStudy(
        results=(
            result("pooled", *(a + b for a, b in zip(base, gained, strict=True))),
            result("pruned", *base),
            result("single", 0.1, 0.1, 0.1),
        ),
        threshold=0.7,
        margin=0.01,
    )
    expected = max(gained) > 0.01 and min(gained) >= -0.01
    assert found.beaten == {"pruned": expected, "single": True}
    assert found.pays == expected
    assert found.verdict.startswith("Pooling beats" if expected else "Pooling does not beat")


@pytest.mark.parametrize(("error", "beaten"), [(0.0, True), (0.03, True), (0.04, False)])
def test_few_additional_latents_are_not_a_gain(error, beaten):
    """A gain of .1 is significant for two errors of .03 each, but not of .04."""
    results = (
        result_of("pooled", outcome_of(0.8, 0.7, 0.6, error=error)),
        result_of("pruned", outcome_of(0.8, 0.6, 0.5, error=error)),
    )
    assert PoolingStudy(results=results, threshold=0.7, margin=0.01).pays == beaten


def test_bad_studies_raise(groups):
    pools = [pooled(group, width=30) for group in groups]
    for its, given_pools, options, words in (
        (groups[:1], pools, {}, "saes must have two entries, of disjoint seeds, got 1"),
        (
            [groups[0], groups[1][:1]],
            pools,
            {},
            "saes must be two lists of equal length, got 2 and 1",
        ),
        ([groups[0], groups[0]], pools, {}, "saes must be two lists without a common SAE"),
        (groups, [pools[0], pooled(groups[1], width=29)], {}, "pools must have equal width"),
        (
            groups,
            pools,
            {"scratch": replace(SCRATCH, seeds=(0,))},
            "scratch.seeds must have two entries",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            study(its, given_pools, **options)
