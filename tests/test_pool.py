"""Pooling: order and uniqueness by brute force, copies, and the verdict."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.strategies import generator, normal, random_sae, seeds
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast import (
    SAE,
    Dictionary,
    TrainConfig,
    evaluate_pooling,
    pool_features,
    sae_from,
    score_stability,
    train_saes,
)
from saefast.evaluation.reconstruction import Reconstruction
from saefast.pool import features as pool
from saefast.pool.features import pool_origin
from saefast.pool.study import MethodResult, Outcome, PoolingStudy, _outcome, cut
from saefast.sae import VARIANTS
from saefast.stability.result import Stability
from saefast.synthetic import PlantedWorld


def directions(dictionary: Any) -> Tensor:
    rows = dictionary.W_dec.detach().double()
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)


def scores(dictionaries: Any, threshold: float = 0.7, absolute: bool = False) -> Stability:
    return score_stability(dictionaries, threshold=threshold, absolute=absolute, progress=False)


def pooled(dictionaries: Any, stability: Any = None, **options: Any) -> Dictionary:
    stability = stability or scores(dictionaries, options.get("threshold", 0.7))
    return pool_features(dictionaries, stability, progress=False, **options)


def random_dictionaries(count: int, m: int, d: int, seed: int) -> list[Dictionary]:
    """Draw features that are in several of them, and some that are dead."""
    shared = normal((m, d), seed, torch.float32)
    out = []
    for number in range(count):
        random = generator(seed + 7 * number + 1)
        noise = torch.rand(m, 1, generator=random) * 1.5
        rows = shared[torch.randperm(m, generator=random)]
        rows = rows + noise * torch.randn(m, d, generator=random)
        rows[torch.rand(m, generator=random) < 0.1] = 0
        rate = torch.rand(m, generator=random)
        rate[torch.rand(m, generator=random) < 0.1] = 0
        encoder, bias = torch.randn(m, d, generator=random), torch.randn(m, generator=random)
        out.append(Dictionary(rows, encoder, bias, torch.randn(d, generator=random), rate))
    return out


@pytest.fixture(params=[16, 4096])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Set the number of candidates that are compared at once."""
    monkeypatch.setattr(pool, "_BLOCK", request.param)
    monkeypatch.setattr(pool, "_CHUNK", 2 * request.param)
    monkeypatch.setattr(pool, "_FIRST_WIDTH", 2)
    return int(request.param)


@pytest.mark.usefixtures("block")
@settings(max_examples=25)
@given(
    st.integers(2, 4),
    st.integers(1, 40),
    st.sampled_from([2, 4, 12]),
    st.sampled_from([0.1, 0.3, 0.7, 0.95]),
    st.booleans(),
    st.booleans(),
    seeds,
)
def test_the_pool_equals_the_definition(count, m, d, threshold, rated, absolute, seed):
    dictionaries = random_dictionaries(count, m, d, seed)
    if not rated:
        dictionaries = [replace(its, firing_rate=None) for its in dictionaries]
    stability = scores(dictionaries, threshold, absolute)
    candidates = [
        (s, i) for s, its in enumerate(dictionaries) for i in range(m) if bool(its.alive[i])
    ]
    if not candidates:
        with pytest.raises(ValueError, match="must have at least one feature that is alive"):
            pooled(dictionaries, stability, threshold=threshold)
        return

    def rank(at: tuple[int, int]) -> Any:
        s, i = at
        rate = dictionaries[s].firing_rate
        second = stability.soft[s][i] if rate is None else rate[i]
        return -int(stability.support[s][i]), -float(second), s, i

    kept: list[tuple[int, int]] = []
    rows = [directions(its) for its in dictionaries]

    def similarity(s: int, i: int, t: int, j: int) -> float:
        cosine = float(rows[s][i] @ rows[t][j])
        return abs(cosine) if absolute else cosine

    for s, i in sorted(candidates, key=rank):
        if all(similarity(s, i, t, j) < threshold - 1e-6 for t, j in kept):
            kept.append((s, i))
    origin = pool_origin(dictionaries, stability, threshold=threshold, progress=False)
    assert list(zip(origin.dictionary.tolist(), origin.feature.tolist(), strict=True)) == kept
    found = pooled(dictionaries, stability, threshold=threshold)
    assert found.m == len(kept)
    for row, (s, i) in enumerate(kept):
        source = dictionaries[s]
        assert torch.equal(found.W_dec[row], source.W_dec[i])
        assert torch.equal(found.W_enc[row], source.W_enc[i])
        if rated:
            assert found.firing_rate[row] == source.firing_rate[i]
    torch.testing.assert_close(
        found.b_dec, torch.stack([its.b_dec for its in dictionaries]).mean(0)
    )
    some = max(1, len(kept) // 2)
    narrow = pooled(dictionaries, stability, threshold=threshold, width=some)
    assert torch.equal(narrow.W_dec, found.W_dec[:some])
    with pytest.raises(ValueError, match=f"width must be at most .* {len(kept)}, got"):
        pooled(dictionaries, stability, threshold=threshold, width=len(kept) + 1)


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


def test_permuted_copies_pool_to_one():
    sae = random_sae(300, 24, 0)
    copies = []
    for number in range(4):
        order = torch.randperm(300, generator=generator(number))
        copies.append(
            Dictionary(
                sae.W_dec.detach()[order],
                sae.W_enc.detach()[order],
                sae.b_enc.detach()[order],
                sae.b_dec.detach(),
                torch.rand(300, generator=generator(9))[order],
            )
        )
    for threshold in (0.99, 1.0):
        found = pooled(copies, threshold=threshold)
        assert found.m == 300
        assert set(map(tuple, found.W_dec.tolist())) == set(map(tuple, copies[0].W_dec.tolist()))
        assert (found.firing_rate.diff() <= 0).all()
    again = sae_from(found, k=3)
    rows = torch.randn(50, 24, generator=generator(1))
    torch.testing.assert_close(again(rows), sae(rows), rtol=1e-4, atol=1e-4)


def test_every_feature_keeps_its_pre_activation():
    dictionaries = random_dictionaries(3, 30, 8, 0)
    stability = scores(dictionaries)
    origin = pool_origin(dictionaries, stability, progress=False)
    found = pooled(dictionaries, stability)
    x = torch.randn(20, 8, generator=generator(5))
    mine = (x - found.b_dec) @ found.W_enc.T + found.b_enc
    for row, (s, i) in enumerate(zip(origin.dictionary, origin.feature, strict=True)):
        its = dictionaries[s]
        expected = (x - its.b_dec) @ its.W_enc[i] + its.b_enc[i]
        torch.testing.assert_close(mine[:, row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("torch_threads")
def test_same_bits_for_any_number_of_threads_and_block(monkeypatch: pytest.MonkeyPatch):
    dictionaries = random_dictionaries(4, 400, 16, 1)
    found = []
    for threads, size in ((1, 64), (3, 4096)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(pool, "_BLOCK", size)
        found.append(pooled(dictionaries))
    for name in ("W_dec", "W_enc", "b_enc", "b_dec", "firing_rate"):
        assert_same_bits(getattr(found[0], name), getattr(found[1], name))


def test_missing_parts_of_a_dictionary_are_missing_in_the_pool():
    bare = [its.W_dec for its in random_dictionaries(2, 20, 6, 0)]
    found = pooled(list(map(Dictionary, bare)), scores(list(map(Dictionary, bare))))
    assert found.W_enc is found.b_enc is found.b_dec is found.firing_rate is None
    sae = sae_from(found, k=2)
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert not sae.b_enc.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_dictionary_becomes_an_sae(variant: str):
    sae = random_sae(30, 8, 0, variant)
    if variant == "gated":
        with pytest.raises(ValueError, match="variant must not be 'gated'"):
            sae_from(sae, k=3, variant=variant)
        return
    threshold = sae.threshold if variant in ("batchtopk", "matryoshka", "jumprelu") else None
    again = sae_from(sae, k=3, variant=variant, threshold=threshold)
    for name, value in sae.state_dict().items():
        assert_same_bits(again.state_dict()[name], value)


def test_bad_input_raises():
    dictionaries = random_dictionaries(2, 20, 6, 0)
    stability = scores(dictionaries)
    longer = replace(stability, support=(torch.ones(21), torch.ones(20)))
    transcoders = [SAE(6, 20, k=2, d_out=6)] * 2
    for sources, its, options, kind, words in (
        (dictionaries, "no", {}, TypeError, "stability must be what score_stability returns"),
        (dictionaries, longer, {}, ValueError, r"stability.support .*\[20, 20\], got \[21, 20\]"),
        (dictionaries, stability, {"threshold": 1.1}, ValueError, "threshold must be above 0"),
        (dictionaries, stability, {"width": 0}, ValueError, "width must be at least 1"),
        (dictionaries, stability, {"firing_rates": [torch.ones(20)]}, ValueError, "firing_rates"),
        (transcoders, stability, {}, ValueError, r"dictionaries\[0\] must not be a transcoder"),
    ):
        with pytest.raises(kind, match=words):
            pooled(sources, its, **options)
    with pytest.raises(ValueError, match="threshold must be None for variant 'topk'"):
        sae_from(dictionaries[0], k=2, threshold=1.0)
    with pytest.raises(ValueError, match=r"jump_threshold must have shape \(20,\)"):
        sae_from(dictionaries[0], k=2, variant="jumprelu", threshold=torch.ones(3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_sae_equals_the_sae_without_the_other_latents(variant: str):
    sae = random_sae(40, 8, 0, variant, k=40)
    rate = torch.rand(40, generator=generator(2))
    small = cut(sae, rate, 25)
    kept = rate.topk(25).indices.sort().values
    rows = torch.randn(30, 8, generator=generator(3))
    code = sae.encode(rows).to_dense(40)[:, kept]
    torch.testing.assert_close(small.encode(rows).to_dense(25), code, rtol=1e-5, atol=1e-6)
    assert torch.equal(small.b_dec, sae.b_dec)
    assert cut(sae, rate, 50).m == 40


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
