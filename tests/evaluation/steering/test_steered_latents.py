"""Latents and directions for steering: scores, peaks, samples, covariance."""

import pytest
import torch
from helpers.tiny_lm import TEXTS, llama, random_sae

from saefast.evaluation.steering.latents import SiteRows
from saefast.evaluation.steering.runs import Items, Job, Plan, Settings, write
from saefast.lm import LanguageModel
from saefast.lm.generation import Opening, added
from saefast.lm.unembedding import unembed

pytestmark = pytest.mark.usefixtures("light")


def _rows(model: LanguageModel) -> SiteRows:
    return SiteRows(model, 1, None, None, None, TEXTS, 1000, False)


def test_clamping_adds_the_missing_part_of_the_activation() -> None:
    model, sae = llama(), random_sae()
    rows = _rows(model)
    items = Items([("trained", 0, rows.latents(sae, 5, {}, 0))], rows, 0)
    opening = Opening(model, 1, "def add(a", batch_size=4)
    here = opening.activations[-1:]
    code = sae.encode(here)
    assert len(set(code.indices[0].tolist()) & set(items.sample.latent.tolist())) > 0
    now = torch.zeros(48).double()
    now[code.indices[0]] = code.values[0].double()
    item = torch.arange(5)
    direction = items.directions["random"]
    job = Job(item=item, direction=direction, level=torch.full((5,), 3.0).double())
    settings = Settings(
        rule="clamp",
        tokens=2,
        temperature=1,
        top_p=0.9,
        least_gain=0.1,
        most_loss=1,
        batch_size=4,
        seed=0,
    )
    plan = Plan(
        model=model, site=1, openers=["def add(a"], items=items, outcomes={}, settings=settings
    )
    written = write(plan, 0, job, lambda _count: None)
    length = (3.0 - now[items.sample.latent]) * items.norm
    vectors = torch.cat([torch.zeros(1, 32), (length[:, None] * direction).float()])
    logits = torch.cat([part for _, part in opening.next_logits(added(vectors), 6)])
    logs = logits.double().log_softmax(1)
    want = (logs[:1].exp() * (logs[:1] - logs[1:])).sum(1)
    torch.testing.assert_close(written.divergence, want, rtol=1e-4, atol=1e-7)


def test_latents_have_firing_statistics() -> None:
    model, sae = llama(), random_sae()
    rows = _rows(model)
    latents = rows.latents(sae, 7, {}, 0)
    x = torch.cat([part.x for part in rows.one_pass])
    dense = torch.zeros(len(x), 48).scatter_(1, sae.encode(x).indices, sae.encode(x).values)
    alive = (dense > 0).any(0)
    assert latents.silent == int((~alive).sum())
    assert latents.weight.tolist() == pytest.approx([int(alive.sum()) / 7] * 7)
    for place, number in enumerate(latents.numbers.tolist()):
        values = dense[:, number][dense[:, number] > 0].double()
        assert float(latents.rate[place]) == pytest.approx(len(values) / len(x))
        assert float(latents.mean[place]) == pytest.approx(float(values.mean()))
        assert float(latents.high[place]) == pytest.approx(float(values.quantile(0.99)))
        cosine = torch.cosine_similarity(sae.W_enc[number], sae.W_dec[number], dim=0)
        assert float(latents.cosine[place]) == pytest.approx(float(cosine), abs=1e-6)
        assert int(latents.rival[place]) != number
        assert bool(alive[latents.rival[place]])
        where = x[dense[:, number] > 0].double().mean(0) - x.double().mean(0)
        torch.testing.assert_close(latents.difference[place], where, rtol=0, atol=1e-9)
    items = Items([("trained", 0, latents)], rows, 0)
    unit = latents.difference / latents.difference.norm(dim=1, keepdim=True)
    torch.testing.assert_close(items.directions["diffmean"], unit)
    levels = items.levels("activation", (2.0,), rows)
    torch.testing.assert_close(levels[:, 0], 2 * latents.high * latents.norm)


def test_peaks_are_the_most_active_token_of_each_context() -> None:
    sae = random_sae()
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(3))
    # Tokens are numbers of rows; the last context has 20 rows and follows a longer one.
    positions = torch.cat([torch.arange(280) % 40, torch.arange(20) + 1])
    rows = SiteRows(llama(), 1, x, torch.arange(300), positions, None, 300, False)
    dense = torch.zeros(300, 48).scatter_(1, sae.encode(x).indices, sae.encode(x).values)
    latents = rows.latents(sae, 48, {}, 0)
    for number, peaks in zip(latents.numbers.tolist(), latents.peaks, strict=True):
        contexts = dense[:, number].split(40)
        want = {40 * c + int(its.argmax()) for c, its in enumerate(contexts) if its.max() > 0}
        assert sorted(peaks.tolist()) == sorted(want)
        values = dense[peaks, number]
        assert bool((values[1:] <= values[:-1]).all())
    without = SiteRows(llama(), 1, x, None, None, None, 300, False).latents(sae, 48, {}, 0)
    assert not any(len(peaks) for peaks in without.peaks)


def test_normalised_rows_count_at_their_usual_scale() -> None:
    model, sae = llama(), random_sae(normalise="norm")
    rows = _rows(model)
    latents = rows.latents(sae, 5, {}, 0)
    x = torch.cat([part.x for part in rows.one_pass]).double()
    usual = x.norm(dim=1).mean() / 32**0.5
    lengths = sae.W_dec[latents.numbers].double().norm(dim=1)
    torch.testing.assert_close(latents.norm, lengths * usual)
    assert latents.directions.norm(dim=1).sub(1).abs().max() < 1e-12


def test_few_latents_are_all_sampled() -> None:
    rows = _rows(llama())
    latents = rows.latents(random_sae(), 1000, {}, 0)
    assert len(latents) == 48 - latents.silent
    assert latents.weight.tolist() == [1.0] * len(latents)


def test_random_directions_have_the_covariance_of_the_activations() -> None:
    rows = _rows(llama())
    x = torch.cat([part.x for part in rows.one_pass]).double()
    drawn = rows.covariance_directions(2000, 0)
    assert drawn.norm(dim=1).sub(1).abs().max() < 1e-12
    values, axes = torch.linalg.eigh(x.T.cov())
    shares = (drawn @ axes).square().mean(0)
    assert float(torch.corrcoef(torch.stack([shares, values]))[0, 1]) > 0.95
    assert float(shares[-1]) > 5 * float(shares[0])


def test_the_unembedding_equals_the_models() -> None:
    model = llama()
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    want = model.model.lm_head(model.model.model.norm(x))
    assert unembed(model, x).equal(want)
    with pytest.raises(ValueError, match=r"directions must be \[n, 32\]"):
        unembed(model, x[:, :5])
