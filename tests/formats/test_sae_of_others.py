"""SAEs of other libraries: not centred, normalising rows, or selecting by norm."""

from typing import Any

import pytest
import torch
from helpers.sae_files import D_OUT, D, K, M, X, some_sae

import saefast
from saefast import SAE, FusedStep
from saefast.evaluation.reconstruction import reconstruction


@pytest.mark.parametrize("centred", [True, False])
def test_b_dec_gets_its_gradient_centred_or_not(centred: bool) -> None:
    sae = some_sae("topk", centred=centred)
    (sae(X) - X).square().sum().backward()
    gradient, before = sae.b_dec.grad, sae.b_dec.detach().clone()
    assert gradient is not None
    sae.zero_grad()
    FusedStep(sae, lr=0.01, rules=saefast.Rules(unit_norm=False))(X)
    # The first step of Adam has the size of the rate, for any gradient.
    torch.testing.assert_close(sae.b_dec.detach(), before - 0.01 * gradient.sign())


def test_by_norm_needs_topk() -> None:
    with pytest.raises(ValueError, match="by_norm must be False unless variant is one of topk"):
        SAE(D, M, variant="relu", by_norm=True)


@torch.no_grad()
def test_latents_with_zero_norm_are_never_selected_by_norm() -> None:
    sae = some_sae("topk", by_norm=True)
    sae.W_dec[1::2] = 0.0
    code = sae.encode(X)
    assert bool(code.values.isfinite().all())
    assert bool((code.indices[code.values > 0] % 2 == 0).all())
    assert bool((code.values > 0).any())


@pytest.mark.parametrize("settings", [{"skip": True}, {"normalise": "layer_norm"}])
def test_saes_that_cannot_be_trained_raise(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must not normalise rows or have"):
        FusedStep(SAE(D, M, k=K, **settings))


def test_only_plain_saes_can_have_another_d_out() -> None:
    for more in ({"centred": True}, {"normalise": "norm"}):
        with pytest.raises(ValueError, match="d_out must be d"):
            SAE(D, M, d_out=D_OUT, **more)


OF_ROWS: list[dict[str, Any]] = [{"normalise": "layer_norm"}, {"normalise": "norm"}, {"skip": True}]
"""Settings with which a reconstruction depends on the row beside its code"""


@pytest.mark.parametrize("settings", OF_ROWS)
@torch.no_grad()
def test_measures_decode_with_the_rows(settings: dict[str, Any]) -> None:
    sae = some_sae("topk", **settings)
    mask = torch.arange(M) < M // 2
    x = X + torch.arange(1.0, len(X) + 1)[:, None]  # rows of different scales
    code = sae.encode(x)

    def explained(values: torch.Tensor) -> float:
        error = (sae.decode(code._replace(values=values), x) - x).square().sum()
        return 1 - float(error / (x - x.mean(0)).square().sum())

    near = {"rel": 1e-4, "abs": 1e-4}
    whole, kept = explained(code.values), code.values * mask[code.indices]
    assert reconstruction(sae, x, progress=False)[0].explained_variance == pytest.approx(
        whole, **near
    )
    (found,) = saefast.feature_function(sae, x, {"half": mask}, progress=False)
    assert found.explained_variance == pytest.approx(whole, **near)
    assert found.groups[0].keep == pytest.approx(explained(kept), **near)
    assert found.groups[0].drop == pytest.approx(explained(code.values - kept), **near)
    latent = int(code.indices[0, 0])
    without = code.values.masked_fill(code.indices == latent, 0.0)
    grown = (whole - explained(without)) * (x - x.mean(0)).square().sum() / len(x)
    assert float(found.effect[latent]) == pytest.approx(float(grown), rel=1e-3)


@torch.no_grad()
def test_contributions_have_the_scale_of_the_rows() -> None:
    sae = some_sae("topk", normalise="norm")
    rows, other = X.clone(), some_sae("topk", seed=0, normalise="norm")
    rows[::2] *= 10  # rows that count more
    groups = [{"some": torch.arange(M) % 3 > 0}, {"some": torch.arange(M) % 3 < 2}]
    found = saefast.contribution_r2([sae, other], rows, groups=groups, draws=1, progress=False)
    code = sae.encode(rows)
    scale = rows.norm(dim=1, keepdim=True) / D**0.5
    a, b = ((code.values * scale * each["some"][code.indices], code.indices) for each in groups)
    a, b = (saefast.sparse_decode(*each, sae.W_dec).double() for each in (a, b))
    expected = 1 - float((a - b).square().sum() / (a - a.mean(0)).square().sum())
    (pair,) = [each for each in found.pairs if each.group == "some" and (each.a, each.b) == (0, 1)]
    assert pair.r2_ab == pytest.approx(expected, rel=1e-4)
