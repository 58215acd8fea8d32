"""Reconstruction of SAEs at a site against other ways to compute it, and defects of others."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs saefast[lm]")

from helpers import tiny_lm

import saefast
from saefast.evaluation.conditions import Condition
from saefast.evaluation.core import MEAN, PRIMARY, core_scores
from saefast.evaluation.intervals import two_way_interval
from saefast.evaluation.item_scores import ratio_values
from saefast.evaluation.reconstruction import reconstruction
from saefast.lm import evaluate_patched, find_site
from saefast.lm.losses import log_probabilities
from saefast.lm.patch import held_out_batches
from saefast.lm.sites import capture

MODEL = tiny_lm.llama()
TEXT = tiny_lm.TEXTS * 3
SETTINGS = {"corpus": TEXT, "tokens": 600, "context": 32, "batch_size": 4}


def rows_at(site: int) -> torch.Tensor:
    found = find_site(MODEL.model, site)
    batches = held_out_batches(MODEL, TEXT, 600, 32, 4, True)
    seen = [capture(MODEL.model, [found], b.ids)[0][b.kept] for b in batches]
    return torch.cat(seen)


def whole() -> saefast.SAE:
    """Return an SAE that reconstructs everything."""
    d = tiny_lm.D
    sae = saefast.SAE(d, 2 * d, variant="relu", k=d)
    with torch.no_grad():
        for side in (sae.W_enc, sae.W_dec):
            side.copy_(torch.cat([torch.eye(d), -torch.eye(d)]))
    return sae


def test_scores_match_evaluate_patched() -> None:
    saes = [tiny_lm.random_sae(), tiny_lm.random_sae(k=12)]
    found = core_scores(
        MODEL, 1, saes, conditions=[Condition(name="whole", saes=(whole(),))], **SETTINGS
    )
    rows = rows_at(1)
    by_sae = {(s.measure, s.seed): s for s in found.scores if s.condition == "trained"}
    for place, sae in enumerate(saes):
        (expected,) = reconstruction(sae, rows, progress=False)
        patched = evaluate_patched(MODEL, 1, sae, progress=False, **SETTINGS)
        values = {
            "explained variance": expected.explained_variance,
            "L0": expected.l0,
            PRIMARY: patched.full.ce_score.value,
            "KL score": patched.full.kl_score.value,
        }
        for measure, value in values.items():
            assert by_sae[measure, place].value == pytest.approx(value, rel=1e-4)
        rate = found.features[place]["held_out_firing_rate"]
        torch.testing.assert_close(rate, expected.firing_rate)
    mean = found.overall(PRIMARY, MEAN)
    assert mean.value == pytest.approx(patched.mean.ce_score.value, rel=1e-4)
    assert found.overall(PRIMARY).primary
    for measure in ("explained variance", "cosine", PRIMARY, "KL score", "relative bias"):
        assert found.overall(measure, "whole").value == pytest.approx(1, abs=1e-4)
        overall = found.overall(measure)
        assert overall.low < overall.value < overall.high
    assert found.overall("explained variance", MEAN).value == pytest.approx(0, abs=1e-6)
    assert found.overall("explained variance").rival == "whole"
    x = rows.double()
    made = saes[0].decode(saes[0].encode(rows)).detach().double()
    ratio = (made.norm(dim=1) / x.norm(dim=1)).mean()
    assert by_sae["length ratio", 0].value == pytest.approx(float(ratio), rel=1e-5)
    bias = made.square().sum() / (made * x).sum()
    assert by_sae["relative bias", 0].value == pytest.approx(float(bias), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(made, x).mean()
    assert by_sae["cosine", 0].value == pytest.approx(float(cosine), rel=1e-5)


def test_geometry_matches_the_rows() -> None:
    sae = tiny_lm.random_sae()
    found = core_scores(MODEL, 1, sae, progress=False, **SETTINGS)
    decoder = torch.nn.functional.normalize(sae.W_dec.double())
    cosines = (decoder @ decoder.T).fill_diagonal_(-2)
    columns = found.features[0]
    torch.testing.assert_close(columns["nearest_cosine"], cosines.amax(1), atol=1e-6, rtol=1e-6)
    own = torch.nn.functional.cosine_similarity(sae.W_enc.double(), sae.W_dec.double())
    torch.testing.assert_close(columns["encoder_decoder_cosine"], own, atol=1e-6, rtol=1e-6)
    fires = columns["held_out_firing_rate"] > 0
    score = found.overall("nearest cosine")
    assert score.value == pytest.approx(float(cosines.amax(1)[fires].mean()), abs=1e-6)
    assert score.low < score.value < score.high
    assert 0 < score.floor < 1
    assert found.overall("latents that fire").value == pytest.approx(float(fires.double().mean()))
    again = core_scores(MODEL, 1, sae, progress=False, **SETTINGS)
    assert str(again.scores) == str(found.scores)


def test_ratios_have_the_interval_of_a_ratio() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        below = generator.gamma(4.0, 1.0, 40)
        above = 0.7 * below + generator.normal(0, 0.5, 40)
        values = ratio_values(above, below)
        assert values.mean() == pytest.approx(above.sum() / below.sum())
        interval = two_way_interval(values[None], draws=400)
        covered += interval.low < 0.7 < interval.high
    assert 180 <= covered <= 199


def explained_as_sae_bench_0_6(x: torch.Tensor, made: torch.Tensor) -> float:
    """Use the square of the mean square in place of the squared mean of each column."""
    total = x.square().sum(1).mean() - x.square().mean() ** 2
    return float(1 - (x - made).square().sum(1).mean() / total)


def test_explained_variance_does_not_depend_on_scale_as_in_sae_bench() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 100, generator=generator, dtype=torch.float64)
    made = 0.9 * x
    theirs, ours = [], []
    for scale in (0.1, 1.0, 9.0):
        d = x.shape[1]
        sae = saefast.SAE(d, 2 * d, variant="relu", k=d, dtype=torch.float64)
        with torch.no_grad():
            sae.W_enc.copy_(torch.cat([torch.eye(d), -torch.eye(d)]))
            sae.W_dec.copy_(0.9 * sae.W_enc)
        (found,) = reconstruction(sae, (scale * x), progress=False)
        ours.append(found.explained_variance)
        theirs.append(explained_as_sae_bench_0_6(scale * x, scale * made))
    assert ours == pytest.approx([0.99] * 3, abs=1e-4)
    assert theirs[0] == pytest.approx(0.99, abs=1e-3)
    assert theirs[2] < 0.96
    # Rows of standard deviation 10 have a total variance of about zero in that formula.
    total = (10 * x).square().sum(1).mean() - (10 * x).square().mean() ** 2
    assert abs(float(total)) < 0.05 * float((10 * x).square().sum(1).mean())


def test_a_divergence_in_logarithms_does_not_underflow() -> None:
    logits = torch.tensor([[0.0, -200.0, 1.0]])
    other = torch.tensor([[0.0, -100.0, 2.0]])
    probabilities, others = logits.softmax(-1), other.softmax(-1)
    by_probabilities = (probabilities * (probabilities.log() - others.log())).sum()
    assert by_probabilities.isnan()
    truth, guess = log_probabilities(logits), log_probabilities(other)
    ours = (truth.exp() * (truth - guess)).sum()
    p, q = (side.double().log_softmax(-1) for side in (logits, other))
    exact = (p.exp() * (p - q)).sum()
    assert float(ours) == pytest.approx(float(exact), rel=1e-5)


def test_saes_that_do_not_fit_the_site_are_refused() -> None:
    with pytest.raises(ValueError, match="transcoder"):
        core_scores(MODEL, 1, saefast.SAE(tiny_lm.D, 48, k=4, d_out=16), **SETTINGS)
    with pytest.raises(ValueError, match=r"the width of the activations, d=32, got d=16"):
        core_scores(MODEL, 1, saefast.SAE(16, 48, k=4), **SETTINGS)
    with pytest.raises(TypeError, match="LanguageModel"):
        core_scores("smollm2", 1, tiny_lm.random_sae())  # type: ignore[arg-type]
