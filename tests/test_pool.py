"""Pooling: order and uniqueness by brute force, copies, and the verdict."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pools import directions, pooled, scores
from helpers.strategies import generator, normal, random_sae, seeds
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast import SAE, Dictionary, load_dictionaries, sae_from, save_sae
from saefast.pool import features as pool
from saefast.pool.features import pool_origin
from saefast.pool.study import cut
from saefast.sae import VARIANTS


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


@pytest.mark.parametrize("centred", [(False, False), (True, False)])
def test_features_of_uncentred_saes_keep_their_pre_activations(centred: tuple[bool, bool]):
    """In many formats b_dec is not subtracted from the rows: Gemma Scope, Qwen Scope, SAELens."""
    saes = [SAE(8, 20, k=3, seed=s, centred=its) for s, its in enumerate(centred)]
    for sae in saes:
        with torch.no_grad():
            sae.b_dec.normal_(generator=generator(1))
            sae.b_enc.normal_(generator=generator(2))
    stability = scores(saes)
    origin = pool_origin(saes, stability, progress=False)
    found = pooled(saes, stability)
    x = torch.randn(20, 8, generator=generator(5))
    mine = sae_from(found, k=3)
    values = mine.inputs(x) @ mine.W_enc.T + mine.b_enc
    for row, (s, i) in enumerate(zip(origin.dictionary, origin.feature, strict=True)):
        expected = saes[s].inputs(x) @ saes[s].W_enc[i] + saes[s].b_enc[i]
        torch.testing.assert_close(values[:, row], expected, rtol=1e-5, atol=1e-5)
    copy = sae_from(saes[1], k=3)
    assert_same_bits(copy(x), saes[1](x))


def test_a_file_states_whether_its_sae_is_centred(tmp_path: Path):
    sae = SAE(8, 20, k=3, seed=0, centred=False)
    with torch.no_grad():
        sae.b_dec.fill_(1)
    (found,) = load_dictionaries(save_sae(sae, tmp_path / "sae"), encoder=True)
    x = torch.randn(20, 8, generator=generator(5))
    assert_same_bits(sae_from(found, k=3)(x), sae(x))


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
        (dictionaries, "no", {}, TypeError, "stability must be a result of score_stability"),
        (dictionaries, longer, {}, ValueError, r"stability.support .*\[20, 20\], got \[21, 20\]"),
        (dictionaries, stability, {"threshold": 1.1}, ValueError, "threshold must be above 0"),
        (dictionaries, stability, {"width": 0}, ValueError, "width must be at least 1"),
        (dictionaries, stability, {"firing_rates": [torch.ones(20)]}, ValueError, "firing_rates"),
        (transcoders, stability, {}, ValueError, r"dictionaries\[0\] must not be a transcoder"),
    ):
        with pytest.raises(kind, match=words):
            pooled(sources, its, **options)
    for options, words in (
        ({"normalise": "norm"}, "must not be an SAE that normalises rows"),
        ({"skip": True}, "must not be an SAE that has a skip connection"),
    ):
        partial = SAE(6, 20, k=2, **options)
        with pytest.raises(ValueError, match=rf"dictionaries\[1\] {words}"):
            pooled([dictionaries[0], partial], stability)
        with pytest.raises(ValueError, match=f"dictionary {words}"):
            sae_from(partial, k=2)
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


@pytest.mark.parametrize("options", [{"centred": False}, {"skip": True}, {"normalise": "norm"}])
def test_a_cut_sae_has_the_inputs_and_outputs_of_the_sae(options: dict[str, Any]):
    sae = SAE(8, 40, k=5, seed=0, **options)
    with torch.no_grad():
        for values in (sae.b_dec, *([sae.W_skip] if sae.skip else [])):
            values.normal_(generator=generator(1))
    rows = torch.randn(30, 8, generator=generator(3))
    assert_same_bits(cut(sae, torch.ones(40), 40)(rows), sae(rows))
