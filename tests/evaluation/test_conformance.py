"""SCR and TPP with known results: classes that are single latents."""

import pytest
import torch
from torch import Tensor

import saefast
from saefast.evaluation.conformance import (
    WARNING,
    Labelled,
    Probe,
    ablated_means,
    encode_texts,
    largest_effects,
    latent_effects,
    scr,
    scr_score,
    tpp,
    tpp_score,
)

D = 6


def coordinates() -> saefast.SAE:
    """Return an SAE with a latent for each coordinate."""
    sae = saefast.SAE(D, D, variant="relu", k=2)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D))
        sae.W_dec.copy_(torch.eye(D))
    return sae.requires_grad_(False)


def texts(*coordinates: int, n: int = 8) -> Tensor:
    """Return texts [n, 3, d] with some coordinates of 1; every other text lacks its last token."""
    x = torch.zeros(n, 3, D)
    x[..., list(coordinates)] = 1.0
    x[::2, 2] = 0
    return x


def labelled(positive: Tensor, negative: Tensor) -> Labelled:
    return Labelled(
        torch.cat([positive, negative]),
        torch.arange(len(positive) + len(negative)) < len(positive),
    )


def reads(coordinate: int) -> Probe:
    return Probe(torch.eye(D)[coordinate], -0.5)


def test_ablation_removes_latents_and_keeps_the_error() -> None:
    sae = coordinates()
    with torch.no_grad():
        sae.W_dec[0] *= 0.5  # half of the first coordinate is error
    found = encode_texts(sae, texts(0, 1))
    mask = torch.tensor([True, False, False, False, False, False])
    torch.testing.assert_close(
        ablated_means(sae, found, mask), torch.tensor([[0.5, 1, 0, 0, 0, 0]]).expand(8, -1)
    )
    assert torch.equal(found.tokens, torch.tensor([2, 3] * 4))


def test_padding_is_not_encoded() -> None:
    sae = coordinates()
    with torch.no_grad():
        sae.b_enc += 0.2  # every latent would be active on a row of zeros
    short = texts(0, 1)[::2]
    mask = torch.arange(D) < 4
    assert (short[:, 2] == 0).all()
    torch.testing.assert_close(
        ablated_means(sae, encode_texts(sae, short), mask),
        ablated_means(sae, encode_texts(sae, short[:, :2].contiguous()), mask),
    )
    data = labelled(short, texts(1, 2)[1::2])
    found = encode_texts(sae, data.texts)
    effects = latent_effects(sae, reads(0), found, data.labels, absolute=True)
    assert effects.tolist() == pytest.approx([1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("variant", ["topk", "relu"])
@pytest.mark.parametrize("normalise", ["layer_norm", "norm"])
def test_ablation_has_the_scale_of_the_rows(variant: str, normalise: str) -> None:
    sae = saefast.SAE(D, 20, variant=variant, k=4, seed=1, normalise=normalise)
    sae.requires_grad_(False)
    x = torch.randn(5, 4, D, generator=torch.Generator().manual_seed(0)) * 10
    x[::2, 2:] = 0
    mask = torch.arange(20) < 10
    expected = []
    for text in x:
        rows = text[(text != 0).any(1)]
        code = sae.encode(rows)
        kept = code._replace(values=torch.where(mask[code.indices], 0.0, code.values))
        change = sae.decode(kept, rows) - sae.decode(code, rows)
        expected.append((rows + change).mean(0))
    torch.testing.assert_close(
        ablated_means(sae, encode_texts(sae, x), mask), torch.stack(expected), rtol=1e-5, atol=1e-5
    )


def test_effects_equal_differences_of_means_along_the_probe() -> None:
    sae = coordinates()
    data = labelled(texts(0, 1), texts(1, 2))
    found = encode_texts(sae, data.texts)
    probe = Probe(torch.tensor([2.0, 1, 3, 0, 0, 0]), 0.0)
    tpp_effects = latent_effects(sae, probe, found, data.labels, absolute=False)
    assert tpp_effects.tolist() == [2, 0, 0, 0, 0, 0]
    scr_effects = latent_effects(sae, probe, found, data.labels, absolute=True)
    assert scr_effects.tolist() == [2, 0, 3, 0, 0, 0]
    assert largest_effects(scr_effects, 1).tolist() == [False, False, True, False, False, False]
    assert int(largest_effects(scr_effects, 5).sum()) == 2


def test_disentangled_classes_have_a_tpp_of_a_half() -> None:
    # Without its latent a probe predicts the negative class, which is right half of the time.
    data = {
        "a": labelled(texts(0), texts(1)),
        "b": labelled(texts(1), texts(2)),
        "c": labelled(texts(2), texts(0)),
    }
    probes = {name: reads(place) for place, name in enumerate("abc")}
    found = tpp(coordinates(), data, data, probes, counts=(1, 2))
    assert [score.value for score in found.scores] == [0.5] * 6
    assert found.notes == (WARNING,)
    torch.testing.assert_close(
        tpp_score(torch.tensor([0.9, 0.8]), torch.tensor([[0.5, 0.7], [0.9, 0.4]])),
        torch.tensor([0.3, 0.4]),
    )


def test_a_spurious_latent_is_removed() -> None:
    # The biased probe reads both coordinates, and mostly the spurious one.
    target = labelled(torch.cat([texts(0), texts(0, 1)]), torch.cat([texts(), texts(1)]) + 1e-4)
    spurious = labelled(torch.cat([texts(1), texts(0, 1)]), torch.cat([texts(), texts(0)]) + 1e-4)
    data = {"target": target, "spurious": spurious}
    biased = Probe(torch.tensor([0.4, 0.6, 0, 0, 0, 0]), -0.35)
    probes = {"target": reads(0), "spurious": reads(1), "biased": biased}
    found = scr(coordinates(), data, data, probes, counts=(1,))
    values = {score.task: score.value for score in found.scores}
    assert values == {"target": 1.0, "spurious": 1.0, "": 1.0}
    assert scr_score(0.9, 0.6, 0.75) == pytest.approx(0.5)
    assert scr_score(0.6, 0.6, 0.9) == 0
    assert found.notes == (WARNING,)


def test_errors_name_mismatched_arguments() -> None:
    data = {"a": labelled(texts(0), texts(1))}
    with pytest.raises(ValueError, match="must hold the same classes, at least two"):
        tpp(coordinates(), data, data, {"a": reads(0)})
    with pytest.raises(ValueError, match="'biased'"):
        scr(coordinates(), data, data, {"a": reads(0)})
