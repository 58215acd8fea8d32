"""SAEBench's own functions on the same tensors: effects, ablation, TPP, SCR, absorption.

SAEBench has no licence, so that it is only called. It asks for NumPy 1, but these parts run with 2:
`pip install --no-deps sae-bench==0.6.0`, then beartype, jaxtyping, einops, tabulate and openai.
"""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import saefast
from saefast.evaluation.absorption.words import absorbed_words
from saefast.evaluation.conformance import (
    Labelled,
    Probe,
    TextCode,
    ablated_means,
    encode_texts,
    largest_effects,
    latent_effects,
    scr_score,
    tpp_score,
)
from saefast.integrations.sae_bench import SaeBenchSae

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("sae_bench", reason="needs sae-bench 0.6.0")
    import sae_bench.evals.absorption.feature_absorption_calculator as their_absorption
    import sae_bench.evals.scr_and_tpp.main as theirs
    import sae_bench.sae_bench_utils.dataset_info as their_classes

D, M, N, LENGTH = 24, 96, 40, 7


def an_sae(variant: str = "topk") -> saefast.SAE:
    sae = saefast.SAE(D, M, variant=variant, k=6, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1, generator=generator)
        sae.b_dec.normal_(std=0.1, generator=generator)
        if variant in ("batchtopk", "jumprelu"):
            assert sae.threshold is not None
            sae.threshold.fill_(0.8)
    return sae.requires_grad_(False)


def bench_sae(sae: saefast.SAE) -> Any:
    return SaeBenchSae(sae, "model", hook_layer=0)


def texts(seed: int, n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(D, generator=generator)
    return torch.randn(n, LENGTH, D, generator=generator) + 0.5 * shift


def bench_probe(probe: Probe) -> Any:
    net = torch.nn.Linear(D, 1)
    net.weight.data = probe.weight[None].clone()
    made = torch.nn.Module()
    made.net = net
    return made


def encoded(sae: saefast.SAE, x: Tensor) -> TextCode:
    return encode_texts(sae, x)


each_variant = pytest.mark.parametrize("variant", ["topk", "batchtopk", "jumprelu", "relu"])


@each_variant
@pytest.mark.parametrize("absolute", [False, True])
def test_effects_agree(variant: str, absolute: bool) -> None:
    sae = an_sae(variant)
    names = next(iter(their_classes.PAIRED_CLASS_KEYS.items())) if absolute else ("a", "b")
    acts = {name: texts(seed) for seed, name in enumerate(names)}
    probe = Probe(torch.randn(D, generator=torch.Generator().manual_seed(9)), 0.0)
    expected = theirs.get_effects_per_class_precomputed_acts(
        bench_sae(sae), bench_probe(probe), names[0], acts, absolute, 8
    )
    data = Labelled(torch.cat([acts[name] for name in names]), torch.arange(2 * N) < N)
    ours = latent_effects(sae, probe, encoded(sae, data.texts), data.labels, absolute=absolute)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert (ours != 0).sum() > M / 4
    # After the positive ones, theirs takes latents of effect zero before negative ones.
    for count in (2, 5, 20):
        assert int((expected > 0).sum()) >= count
        their_mask = theirs.select_top_n_features(expected, count, "a")
        assert torch.equal(largest_effects(ours, count), their_mask)


@each_variant
def test_ablations_agree(variant: str) -> None:
    sae = an_sae(variant)
    x = texts(3)
    mask = torch.arange(M) % 3 == 0
    expected = theirs.ablated_precomputed_activations(x, bench_sae(sae), mask, 8)
    ours = ablated_means(sae, encoded(sae, x), mask)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours, x.mean(1), atol=1e-2)


def test_ablation_of_padded_texts_differs_on_purpose() -> None:
    """SAEBench also ablates the code of padding, rows of zeros; saefast does not."""
    sae = an_sae()
    x = texts(3)
    x[:, -2:] = 0
    mask = torch.arange(M) % 2 == 0
    expected = theirs.ablated_precomputed_activations(x, bench_sae(sae), mask, 8)
    ours = ablated_means(sae, encoded(sae, x), mask)
    shorter = ablated_means(sae, encoded(sae, x[:, :-2].contiguous()), mask)
    torch.testing.assert_close(ours, shorter)
    assert not torch.allclose(ours, expected, atol=1e-3)
    empty = sae.encode(torch.zeros(1, D))
    left = torch.where(mask[empty.indices], empty.values, 0.0)
    taken = left @ sae.W_dec[empty.indices[0]]
    torch.testing.assert_close(expected, ours - 2 * taken / (LENGTH - 2), atol=1e-5, rtol=1e-4)


def test_tpp_agrees() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(4, generator=generator, dtype=torch.float64)
    ablated = torch.rand(4, 4, generator=generator, dtype=torch.float64)
    names = list("abcd")
    by_class = {
        row: {5: {column: float(ablated[i, j]) for j, column in enumerate(names)}}
        for i, row in enumerate(names)
    }
    overall, each = theirs.create_tpp_plotting_dict(
        by_class, dict(zip(names, clean.tolist(), strict=True))
    )
    ours = tpp_score(clean, ablated)
    key = "tpp_threshold_5_total_metric"
    assert ours.tolist() == pytest.approx([each[name][key] for name in names], abs=1e-12)
    assert float(ours.mean()) == pytest.approx(overall[key], abs=1e-12)


@pytest.mark.parametrize("biased", [(0.55, 0.7), (0.7, 0.55), (0.9, 0.5)])
def test_scr_agrees(biased: tuple[float, float]) -> None:
    target, spurious = "professor / nurse", "male / female"
    both = "male_professor / female_nurse"
    on = [f"{both} probe on {side} data" for side in (target, spurious)]
    clean = {target: 0.9, spurious: 0.95, on[0]: biased[0], on[1]: biased[1]}
    changed = {spurious: {10: {on[0]: 0.8, on[1]: 0.1}}, target: {10: {on[0]: 0.2, on[1]: 0.65}}}
    expected = theirs.get_scr_plotting_dict(changed, clean)
    ours = [scr_score(0.9, biased[0], 0.8), scr_score(0.95, biased[1], 0.65)]
    assert expected["scr_dir1_threshold_10"] == pytest.approx(ours[0])
    assert expected["scr_dir2_threshold_10"] == pytest.approx(ours[1])
    worse = 0 if biased[0] < biased[1] else 1
    assert expected["scr_metric_threshold_10"] == pytest.approx(ours[worse])


class GivenActivations:
    """A model that returns given activations, batch by batch."""

    def __init__(self, rows: Tensor):
        self._rows = rows

    def to_tokens(self, _text: str) -> Tensor:
        return torch.zeros(1, 5)

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> Any:
        taken, self._rows = self._rows[: len(prompts)], self._rows[len(prompts) :]
        return None, {names_filter[0]: taken[:, None].expand(-1, 5, -1)}


@each_variant
@pytest.mark.parametrize("main", [[3], [3, 17, 40]])
def test_absorption_of_each_word_agrees(variant: str, main: list[int]) -> None:
    sae = an_sae(variant)
    generator = torch.Generator().manual_seed(2)
    n = 300
    probe = sae.W_dec[3] + 0.5 * sae.W_dec[17] + 0.7 * torch.randn(D, generator=generator)
    rows = torch.randn(n, D, generator=generator) + 0.3 * probe
    calculator = their_absorption.FeatureAbsorptionCalculator(
        model=GivenActivations(rows),
        icl_word_list=["apple", "pear"],
        max_icl_examples=1,
        topk_feats=10,
    )
    expected = calculator.calculate_absorption(
        bench_sae(sae),
        [f"word{number}" for number in range(n)],
        probe,
        main,
        layer=0,
        show_progress=False,
    ).word_results
    ours = absorbed_words(sae.encode(rows), rows, sae.W_dec, probe, main)
    fractions = torch.tensor([float(word.absorption_fraction) for word in expected])
    full = torch.tensor([bool(word.is_full_absorption) for word in expected])
    readings = torch.tensor([word.probe_projection for word in expected])
    torch.testing.assert_close(ours.fraction.float(), fractions, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.full, full)
    torch.testing.assert_close(ours.reading.float(), readings, atol=1e-5, rtol=1e-5)
    assert 5 < int((fractions > 0).sum()) < n
