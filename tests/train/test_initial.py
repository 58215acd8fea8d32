"""Runs that start from given SAEs."""

from pathlib import Path

import pytest
import torch
from helpers.tolerance import assert_same_bits
from helpers.training_runs import ROWS, config, metrics_of, train

from saefast import SAE, Rules
from saefast.activations import TensorActivations
from saefast.sae import VARIANTS


def test_a_run_starts_from_given_saes(tmp_path: Path) -> None:
    """They are returned unchanged without learning; scaling and unscaling cancel."""
    given = train(config(seeds=(4, 5), tokens=1000))
    before = [{name: value.clone() for name, value in sae.state_dict().items()} for sae in given]
    still = config(lr=0.0, auxk=None, seeds=(0, 1), k_start=None)
    for sae, back in zip(given, train(still, initial=given), strict=True):
        for name, value in sae.state_dict().items():
            torch.testing.assert_close(back.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    tuned = train(config(seeds=(0, 1), k_start=None), initial=given)
    for sae, state, better in zip(given, before, tuned, strict=True):
        for name, value in sae.state_dict().items():
            assert_same_bits(value, state[name])
        error, less = (((each(ROWS) - ROWS) ** 2).sum() for each in (sae, better))
        assert less < 0.9 * error


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_be_trained_further(variant: str) -> None:
    chosen = config(variant=variant, sparsity=1.0, k_start=None)
    given = train(chosen)[0]
    still = train(config(variant=variant, lr=0.0, k_start=None, auxk=None), initial=given)[0]
    for name, value in given.state_dict().items():
        if name != "batch_threshold":  # estimated again from the batches
            torch.testing.assert_close(still.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_a_transcoder_can_be_trained_further() -> None:
    mix = torch.randn(16, 24, generator=torch.Generator().manual_seed(2))
    pairs = TensorActivations(ROWS, 50 * ROWS @ mix)
    given = train(config(k_start=None), rows=pairs)[0]
    still = config(lr=0.0, auxk=None, k_start=None)
    back = train(still, rows=pairs, initial=given)[0]
    for name, value in given.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="initial must have d_out=24"):
        train(still, rows=pairs, initial=SAE(16, 96, k=4, d_out=23))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_transcoder_can_be_trained_further_on_rows_of_another_scale(variant: str) -> None:
    mix = torch.randn(16, 24, generator=torch.Generator().manual_seed(2))
    pairs = TensorActivations(ROWS[:700], ROWS[:700] @ mix)
    others = TensorActivations(ROWS[700:], 3 * ROWS[700:] @ mix)
    given = train(config(variant=variant, k_start=None), rows=pairs)[0]
    still = config(variant=variant, lr=0.0, auxk=None, k_start=None)
    back = train(still, rows=others, initial=given)[0]
    x = ROWS[700:]
    if variant in ("batchtopk", "matryoshka"):  # estimated again from the batches
        back.batch_threshold.copy_(given.batch_threshold * back.W_enc.norm() / given.W_enc.norm())
    torch.testing.assert_close(back(x), given(x), rtol=1e-4, atol=1e-4)
    uneven = SAE(16, 96, k=4, d_out=24, variant=variant)
    uneven.W_dec.data[0] *= 2
    with pytest.raises(ValueError, match="initial must have decoder rows of norm 1"):
        train(still, rows=others, initial=uneven)


def test_k_is_taken_from_the_config(tmp_path: Path) -> None:
    given = train(config(tokens=1000))[0]
    wider = train(config(k=6, k_start=None), initial=given, out=tmp_path)[0]
    assert (given.k, wider.k) == (4, 6)
    assert metrics_of(tmp_path)[-1]["l0"] > 5


def test_unsuitable_initial_saes_raise() -> None:
    for initial, kind, words in (
        (SAE(16, 95, k=4), ValueError, "initial must have latents=96, .*, got 95"),
        (SAE(15, 96, k=4), ValueError, "initial must have d=16"),
        (SAE(16, 96, k=4, variant="relu"), ValueError, "initial must have variant='topk'"),
        (SAE(16, 96, k=4, by_norm=True), ValueError, "initial must have by_norm=False"),
        (SAE(16, 96, k=4, d_out=16), ValueError, "initial must have transcodes=False"),
        ([SAE(16, 96, k=4)] * 2, ValueError, "initial must be one for each SAE of the run, 1"),
        (["sae"], TypeError, r"initial\[0\] must be a saefast.SAE, got str"),
    ):
        with pytest.raises(kind, match=words):
            train(config(), initial=initial)
    long = SAE(16, 96, k=4)
    long.W_dec.data *= 2
    with pytest.raises(ValueError, match="initial must have decoder rows of norm 1"):
        train(config(), initial=long)
    train(config(rules=Rules(unit_norm=False), tokens=128), initial=long)
