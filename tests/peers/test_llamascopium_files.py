"""saefast computes the same from a file of llamascopium, and vice versa."""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_files import D, K, M, Peer, assert_agree, assert_close, randomise, rows
from safetensors.torch import load_file
from torch import Tensor

import saefast

if importlib.util.find_spec("llamascopium") is None:
    pytest.skip(
        "llamascopium is not installed; it needs Python below 3.13", allow_module_level=True
    )

with warnings.catch_warnings():  # ignore warnings of its dependencies
    warnings.simplefilter("ignore")
    from llamascopium.models.crosscoder import Crosscoder, CrosscoderConfig
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

NORMS = {"in": 3.7, "out": 9.1}
"""mean norm of activations on some data set; normalised rows have the norm sqrt(D)"""


def model_of(act_fn: str, **settings: Any) -> SparseAutoEncoder:
    settings = {"hook_point_in": "in", "hook_point_out": "in", "top_k": K} | settings
    settings = {"norm_activation": "inference", "expansion_factor": M / D} | settings
    model = SparseAutoEncoder(SAEConfig(d_model=D, act_fn=act_fn, **settings))
    randomise(model)
    with torch.no_grad():
        model.W_D.mul_(torch.linspace(0.3, 3, M)[:, None])
        if act_fn == "jumprelu":
            model.activation_function.log_jumprelu_threshold.copy_(torch.linspace(-3, 0, M))
    if model.cfg.norm_activation == "dataset-wise":
        hooks = {model.cfg.hook_point_in, model.cfg.hook_point_out}
        model.set_dataset_average_activation_norm({hook: NORMS[hook] for hook in hooks})
    return model


def saved(model: SparseAutoEncoder, folder: Path) -> Path:
    """Save a model like its trainer."""
    model.save_pretrained(folder)
    model.cfg.save_hyperparameters(folder)
    return folder


def peer_of(model: SparseAutoEncoder) -> Peer:
    """Return its results on raw activations, with the calls that it requires before and after."""
    hook_in, hook_out = model.cfg.hook_point_in, model.cfg.hook_point_out

    def encode(x: Tensor) -> Tensor:
        return model.encode(model.normalize_activations({hook_in: x})[hook_in])

    def forward(x: Tensor) -> Tensor:
        normalised, scales = model.normalize_activations({hook_in: x}, return_scale_factor=True)
        if hook_out not in scales:
            scales[hook_out] = model.compute_norm_factor(x, hook_out)
        y = model(normalised[hook_in])
        return model.denormalize_activations({hook_out: y}, scales)[hook_out]

    return Peer(encode, model.decode, forward)


def load(folder: Path) -> Peer:
    return peer_of(SparseAutoEncoder.from_pretrained(str(folder)))


def there_and_back(model: SparseAutoEncoder, folder: Path) -> saefast.SAE:
    peer = peer_of(model)
    sae = saefast.load_sae(saved(model, folder / "theirs"))
    assert_agree(sae, peer)
    again = saefast.save_sae(sae, folder / "again", format="llamascopium")
    assert_agree(sae, load(again))
    assert_agree(saefast.load_sae(again), peer)
    return sae


@pytest.mark.parametrize("settings", [{}, {"use_decoder_bias": False}, {"hook_point_out": "out"}])
@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
def test_files_agree(tmp_path: Path, act_fn: str, by_norm: bool, settings: dict[str, Any]) -> None:
    model = model_of(act_fn, sparsity_include_decoder_norm=by_norm, **settings)
    sae = there_and_back(model, tmp_path)
    assert sae.variant == act_fn
    assert sae.transcodes == ("hook_point_out" in settings)


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
def test_rows_scaled_to_one_norm(tmp_path: Path, act_fn: str) -> None:
    sae = there_and_back(model_of(act_fn, norm_activation="token-wise"), tmp_path)
    assert sae.normalise == "norm"


@pytest.mark.parametrize("hook_out", ["in", "out"])
@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
def test_the_norm_of_a_dataset_is_folded(
    tmp_path: Path, act_fn: str, by_norm: bool, hook_out: str
) -> None:
    """Values are on the scale of the activations, as the peer folds them.

    The peer keeps the thresholds of a JumpReLU, which changes the active latents.
    """
    model = model_of(
        act_fn,
        norm_activation="dataset-wise",
        hook_point_out=hook_out,
        sparsity_include_decoder_norm=by_norm,
    )
    folder, scaled = saved(model, tmp_path / "theirs"), peer_of(model)
    size = NORMS["in"] / D**0.5
    peer = Peer(lambda x: size * scaled.encode(x), lambda code: code, scaled.forward)
    folded = peer_of(SparseAutoEncoder.from_pretrained(str(folder), fold_activation_scale=True))
    with torch.no_grad():
        if act_fn == "jumprelu":
            theirs, right = folded.forward(rows()), scaled.forward(rows())
            assert (theirs - right).norm() > 0.01 * right.norm()
        else:
            assert_close(folded.encode(rows()), peer.encode(rows()))
            peer = folded
    sae = saefast.load_sae(folder)
    again = saefast.save_sae(sae, tmp_path / "again", format="llamascopium")
    with torch.no_grad():
        for agreeing in (sae, saefast.load_sae(again), load(again)):
            code = agreeing.encode(rows())
            dense = code if isinstance(code, Tensor) else code.to_dense(M)
            assert_close(dense, peer.encode(rows()))
            assert_close(agreeing.forward(rows()), scaled.forward(rows()))
            assert_close(agreeing.decode(code), scaled.forward(rows()))


@pytest.mark.parametrize("by_norm", [False, True])
def test_batch_topk_is_read_with_a_given_threshold(tmp_path: Path, by_norm: bool) -> None:
    """The threshold is halfway between the last kept and the first omitted value of the batch."""
    model = model_of("batchtopk", sparsity_include_decoder_norm=by_norm)
    x = rows()
    with torch.no_grad():
        _, pre = model.encode(x, return_hidden_pre=True)
        if by_norm:
            pre = pre * model.decoder_norm()
        last, first = pre.flatten().topk(K * len(x) + 1).values[-2:].tolist()
    folder = saved(model, tmp_path / "theirs")
    with pytest.raises(ValueError, match="give load_sae a threshold"):
        saefast.load_sae(folder)
    sae = saefast.load_sae(folder, threshold=(last + first) / 2)
    assert_agree(sae, peer_of(model))
    assert sae.k == K
    again = saefast.save_sae(sae, tmp_path / "again", format="llamascopium")
    assert_agree(sae, load(again))
    assert_agree(saefast.load_sae(again), peer_of(model))


def test_a_checkpoint_in_a_torch_file_is_read(tmp_path: Path) -> None:
    model = model_of("topk", jumprelu_threshold_window=1.5)
    model.cfg.save_hyperparameters(tmp_path)
    model.save_checkpoint(tmp_path / "sae_weights.pt")
    for name in ("trainer.pt", "optimizer.pt", "scheduler.pt"):  # other files of its trainer
        torch.save({}, tmp_path / name)
    sae = saefast.load_sae(tmp_path)
    assert_agree(sae, peer_of(model))
    again = saefast.save_sae(sae, tmp_path / "again", format="llamascopium")
    assert json.loads((again / "config.json").read_text())["jumprelu_threshold_window"] == 1.5


def test_weights_of_lower_precision_are_computed_in_float32(tmp_path: Path) -> None:
    model = model_of("topk", dtype=torch.bfloat16)
    saved(model, tmp_path / "theirs")
    assert load_file(tmp_path / "theirs" / "sae_weights.safetensors")["W_E"].dtype == torch.bfloat16
    assert_agree(saefast.load_sae(tmp_path / "theirs"), load(tmp_path / "theirs"))


def test_conversions_to_other_formats_and_back(tmp_path: Path) -> None:
    """In formats without selection by norm, values are multiplied by the norms."""
    model = model_of("topk")
    folder = saved(model, tmp_path / "theirs")
    lens = saefast.convert(folder, tmp_path / "lens", to="sae_lens")
    back = saefast.convert(lens, tmp_path / "back", to="llamascopium")
    with torch.no_grad():
        values, x = model.encode(rows()) * model.decoder_norm(), rows()
        for again in (saefast.load_sae(lens), saefast.load_sae(back)):
            assert_close(again.encode(x).to_dense(M), values)
            assert_close(again(x), model(x))
        assert_close(load(back).encode(x), values)
        assert_close(load(back).forward(x), model(x))


def test_unsupported_models_raise(tmp_path: Path) -> None:
    saved(model_of("topk", use_glu_encoder=True), tmp_path / "glu")
    with pytest.raises(ValueError, match="use_glu_encoder must be False"):
        saefast.load_sae(tmp_path / "glu")
    saved(model_of("topk", norm_activation="batch-wise"), tmp_path / "batch")
    with pytest.raises(ValueError, match="depend on the batch"):
        saefast.load_sae(tmp_path / "batch")
    settings = {"hook_points": ["a", "b"], "expansion_factor": 2, "norm_activation": "inference"}
    crosscoder = Crosscoder(CrosscoderConfig(d_model=D, act_fn="topk", top_k=K, **settings))
    saved(crosscoder, tmp_path / "cross")
    with pytest.raises(ValueError, match="sae_type must be 'sae' to be loaded, got 'crosscoder'"):
        saefast.load_sae(tmp_path / "cross")
