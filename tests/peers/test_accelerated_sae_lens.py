"""Trained SAEs of SAELens encode and reconstruct the same after acceleration."""

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sae_lens
import torch
from lens_training import (
    TIGHT,
    D,
    K,
    M,
    batches_of,
    made,
    step_of,
)
from sae_lens import SAE
from safetensors.torch import load_file

from saefast.integrations import sae_lens as inside
from saefast.integrations.sae_lens import codes


def _inference(kind: str, tmp_path: Path, **settings: Any) -> tuple[SAE, SAE]:
    made(kind, **settings).save_inference_model(tmp_path)
    return SAE.load_from_disk(tmp_path), inside.accelerate(SAE.load_from_disk(tmp_path))


@pytest.fixture
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use sparse codes even for the few rows of a test."""
    monkeypatch.setattr(codes, "_SMALLEST_ENCODER", 0)


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("kind", ["topk", "abstopk", "batchtopk"])
def test_accelerated_saes_agree(kind: str, tmp_path: Path) -> None:
    own, ours = _inference(kind, tmp_path)
    with torch.no_grad():
        if kind == "batchtopk":
            for sae in (own, ours):
                sae.threshold.copy_(torch.linspace(-0.5, 2.0, M))
    assert isinstance(ours, type(own))
    for x in (batches_of(1)[0], torch.randn(3, 7, D), torch.randn(D), torch.randn(0, D)):
        torch.testing.assert_close(ours.encode(x), own.encode(x), **TIGHT)
        torch.testing.assert_close(ours(x), own(x), **TIGHT)
    dense = 100 * batches_of(1)[0]
    torch.testing.assert_close(ours(dense), own(dense), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("kind", ["TopK", "AbsTopK"])
def test_accelerated_saes_that_rescale_agree(kind: str) -> None:
    make, configure = (getattr(sae_lens, f"{kind}SAE{end}") for end in ("", "Config"))
    own = make(configure(d_in=D, d_sae=M, k=K, rescale_acts_by_decoder_norm=True))
    with torch.no_grad():
        own.W_dec.mul_(torch.linspace(0.2, 3.0, M)[:, None])
    ours, x = inside.accelerate(copy.deepcopy(own)), batches_of(1)[0]
    torch.testing.assert_close(ours.encode(x), own.encode(x), **TIGHT)
    torch.testing.assert_close(ours(x), own(x), **TIGHT)


@pytest.mark.usefixtures("however_small")
def test_accelerated_saes_keep_files_hooks_and_gradients(tmp_path: Path) -> None:
    own, ours = _inference("topk", tmp_path / "one")
    x = batches_of(1)[0].requires_grad_()
    for sae in (own, ours):
        sae(x).square().sum().backward()
    for name, theirs in own.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, theirs.grad, **TIGHT)
    _, own_cache = own.run_with_cache(x)
    _, cache = ours.run_with_cache(x)
    for name in own_cache:
        torch.testing.assert_close(cache[name], own_cache[name], **TIGHT)
    ours.save_model(tmp_path / "two")
    first, second = (tmp_path / name / "sae_weights.safetensors" for name in ("one", "two"))
    tensors = load_file(second)
    for name, tensor in load_file(first).items():
        assert torch.equal(tensors[name], tensor)
    assert inside.accelerate(ours) is ours


@pytest.mark.usefixtures("however_small")
def test_accelerated_saes_with_an_error_term_agree(tmp_path: Path) -> None:
    _, ours = _inference("topk", tmp_path)
    with pytest.warns(DeprecationWarning, match="use_error_term"):
        ours.use_error_term = True
    x = batches_of(1)[0]
    torch.testing.assert_close(ours(x), x, **TIGHT)


@pytest.mark.parametrize(
    ("rows", "d_in", "d_sae", "ops"),
    [(1, 128, 1024, 1), (32, 128, 1024, 1), (32, 128, 1023, 0)],
)
@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_small_batches_are_left_to_saelens(
    kind: str, rows: int, d_in: int, d_sae: int, ops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae_class, config_class = sae_lens.registry.get_sae_class(kind)
    own = sae_class(config_class(d_in=d_in, d_sae=d_sae))
    ours = inside.accelerate(sae_class(config_class(d_in=d_in, d_sae=d_sae)))
    ours.load_state_dict(own.state_dict())
    name = {"topk": "topk_code", "jumprelu": "threshold_code"}[kind]
    sparse_codes = mock.Mock(wraps=getattr(codes, name))
    monkeypatch.setattr(codes, name, sparse_codes)
    x = torch.randn(rows, d_in)
    for method in ("encode", "forward"):
        sparse_codes.reset_mock()
        given, expected = getattr(ours, method)(x), getattr(own, method)(x)
        assert sparse_codes.call_count == ops
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("made_in_inference_mode", [True, False])
def test_accelerated_saes_agree_in_inference_mode(made_in_inference_mode: bool) -> None:
    with torch.inference_mode(made_in_inference_mode):
        own = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=D, d_sae=M, k=K))
        ours = copy.deepcopy(own)
    with torch.inference_mode():
        inside.accelerate(ours)
        x = batches_of(1)[0]
        torch.testing.assert_close(ours(x), own(x), **TIGHT)
    assert ours.W_enc.is_inference() is made_in_inference_mode


def test_accelerate_refuses_unknown_architectures() -> None:
    config = sae_lens.StandardSAEConfig(d_in=D, d_sae=M)
    with pytest.raises(TypeError, match="TopKSAE"):
        inside.accelerate(sae_lens.StandardSAE(config))


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("kind", ["saefast_topk", "saefast_batchtopk", "accelerated"])
def test_folding_decoder_norms_does_not_change_results(kind: str) -> None:
    if kind == "accelerated":
        config = sae_lens.TopKSAEConfig(d_in=D, d_sae=M, k=K, rescale_acts_by_decoder_norm=True)
        sae = inside.accelerate(sae_lens.TopKSAE(config))
        with torch.no_grad():
            sae.W_dec.mul_(torch.linspace(0.2, 3.0, M)[:, None])
    else:
        sae = made(kind)
    x = batches_of(1)[0]
    before = sae.encode(x), sae(x)
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M))
    torch.testing.assert_close(sae.encode(x), before[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x), before[1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("however_small")
def test_saved_threshold_matches_training(tmp_path: Path) -> None:
    """After many passes over one batch, BatchTopK and JumpReLU keep the same latents."""
    sae, x = made("saefast_batchtopk"), batches_of(1)[0]
    for _ in range(60):
        output = sae.training_forward_pass(step_of(x))
    assert output.metrics["topk_threshold"] is sae.topk_threshold
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    expected = torch.full((M,), float(sae.topk_threshold))
    torch.testing.assert_close(loaded.threshold.data, expected)
    torch.testing.assert_close(loaded.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inside.accelerate(loaded)(x), sae(x), rtol=1e-4, atol=1e-4)
