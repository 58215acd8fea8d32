"""SAEs of other libraries: not centred, normalising rows, or selecting by norm."""

from typing import Any

import pytest
import torch
from helpers.sae_files import D_OUT, D, K, M, X, some_sae

import saefast
from saefast import SAE, FusedStep


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
