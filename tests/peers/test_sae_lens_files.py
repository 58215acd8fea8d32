"""saefast computes the same from a file of SAELens, and vice versa."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_files import D_OUT, D, K, M, assert_agree, assert_close, randomise, rows, there_and_back
from peer_models import as_peer, load_dictionary_learning, load_sae_lens, sae_lens_model
from sae_lens import SAE as SaeLens
from sae_lens.registry import get_sae_training_class
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

import saefast

TRANSCODER = {"d_out": D_OUT, "apply_b_dec_to_input": False}


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("topk", {}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("topk", {"apply_b_dec_to_input": False}),
        ("topk", {"normalize_activations": "layer_norm"}),
        ("topk", {"normalize_activations": "constant_norm_rescale"}),
        ("abstopk", {}),
        ("abstopk", {"rescale_acts_by_decoder_norm": True}),
        ("jumprelu", {}),
        ("jumprelu", {"apply_b_dec_to_input": False, "normalize_activations": "layer_norm"}),
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("gated", {}),
        ("gated", {"apply_b_dec_to_input": False}),
        ("transcoder", TRANSCODER),
        ("transcoder", {"d_out": D, "apply_b_dec_to_input": False}),
        ("skip_transcoder", TRANSCODER),
        ("jumprelu_transcoder", TRANSCODER),
        ("jumprelu_skip_transcoder", TRANSCODER),
    ],
    ids=str,
)
def test_inference_files_agree(tmp_path: Path, architecture: str, settings: dict[str, Any]) -> None:
    model = sae_lens_model(architecture, **settings)
    model.save_model(tmp_path / "theirs")
    there_and_back(tmp_path / "theirs", as_peer(model), load_sae_lens, "sae_lens")


def test_negative_thresholds_agree(tmp_path: Path) -> None:
    model = sae_lens_model("jumprelu")
    with torch.no_grad():
        model.threshold.copy_(torch.linspace(-1, 1, M))
    model.save_model(tmp_path / "theirs")
    there_and_back(tmp_path / "theirs", as_peer(model), load_sae_lens, "sae_lens")


def training_model(architecture: str, **settings: Any) -> Any:
    model_class, config_class = get_sae_training_class(architecture)
    if "topk" in architecture:
        settings.setdefault("k", K)
    if architecture == "matryoshka_batchtopk":
        settings["matryoshka_widths"] = [20, M]
    model = model_class(config_class(d_in=D, d_sae=M, **settings))
    randomise(model)
    if hasattr(model, "topk_threshold"):
        model.topk_threshold.fill_(0.8)
    return model


TRAINING = [
    ("standard", {}),
    ("gated", {}),
    ("jumprelu", {}),
    ("topk", {"rescale_acts_by_decoder_norm": False}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("abstopk", {"rescale_acts_by_decoder_norm": True}),
    ("batchtopk", {"rescale_acts_by_decoder_norm": False}),
    ("batchtopk", {"rescale_acts_by_decoder_norm": True, "k": 5.3}),
    ("matryoshka_batchtopk", {"rescale_acts_by_decoder_norm": True}),
]


@pytest.mark.parametrize(("architecture", "settings"), TRAINING, ids=str)
def test_checkpoints_compute_the_same_as_their_inference_files(
    tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    model = training_model(architecture, **settings)
    model.save_model(tmp_path / "checkpoint")
    model.save_inference_model(tmp_path / "finished")
    peer = load_sae_lens(tmp_path / "finished")
    sae = saefast.load_sae(tmp_path / "checkpoint")
    variants = {"standard": "relu", "matryoshka_batchtopk": "matryoshka"}
    assert sae.variant == variants.get(architecture, architecture)
    if "topk" in architecture:
        assert sae.k == K
    there_and_back(tmp_path / "checkpoint", peer, load_sae_lens, "sae_lens")
    there_and_back(tmp_path / "finished", peer, load_sae_lens, "sae_lens")


@pytest.mark.parametrize("kind", ["expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize(("architecture", "settings"), TRAINING, ids=str)
def test_scales_of_a_checkpoint_are_folded(
    tmp_path: Path, architecture: str, settings: dict[str, Any], kind: str
) -> None:
    model = training_model(architecture, normalize_activations=kind, **settings)
    model.save_model(tmp_path / "checkpoint")
    scaler = ActivationScaler()
    if kind == "covariance_whitening":
        matrix = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0]
        spread = torch.linspace(0.5, 2, D, dtype=torch.float64)
        scaler.whitening = ActivationWhitening(
            0.1 * torch.randn(D, dtype=torch.float64), matrix / spread, spread[:, None] * matrix.T
        )
        model.fold_activation_whitening(
            scaler.whitening.mean, scaler.whitening.matrix, scaler.whitening.inverse_matrix
        )
    else:
        scaler.scaling_factor = 0.37
        model.fold_activation_norm_scaling_factor(0.37)
    scaler.save(str(tmp_path / "checkpoint" / "activation_scaler.json"))
    model.save_inference_model(tmp_path / "finished")
    peer = load_sae_lens(tmp_path / "finished")
    there_and_back(tmp_path / "checkpoint", peer, load_sae_lens, "sae_lens")
    scales = {"activation_scaler.json", "activation_whitening.safetensors"}
    assert not scales & {file.name for file in (tmp_path / "again").iterdir()}
    if architecture == "abstopk":
        return  # dictionary_learning does not have it
    learnt = saefast.convert(tmp_path / "checkpoint", tmp_path / "dl", to="dictionary_learning")
    with torch.no_grad():
        assert_close(load_dictionary_learning(learnt).forward(rows()), peer.forward(rows()))


def test_a_missing_scale_raises(tmp_path: Path) -> None:
    model = training_model("topk", normalize_activations="expected_average_only_in")
    model.save_model(tmp_path / "sae")
    with pytest.raises(ValueError, match=r"activation_scaler.json does not have it"):
        saefast.load_sae(tmp_path / "sae")


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard", "gated"])
def test_configs_from_before_6_agree(tmp_path: Path, architecture: str) -> None:
    model = sae_lens_model(architecture)
    model.save_model(tmp_path / "theirs")
    config = {
        "d_in": D,
        "d_sae": M,
        "dtype": "torch.float32",
        "hook_point": "blocks.3.hook_resid_pre",
        "hook_point_layer": 3,
        "model_name": "gpt2-small",
        "normalize_activations": False,
        "lp_norm": 1.0,
    }
    if architecture == "topk":
        config |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    elif architecture != "standard":
        config["architecture"] = architecture
    (tmp_path / "theirs" / "cfg.json").write_text(json.dumps(config))
    there_and_back(
        tmp_path / "theirs", load_sae_lens(tmp_path / "theirs"), load_sae_lens, "sae_lens"
    )
    again = SaeLens.load_from_disk(tmp_path / "again")
    assert again.cfg.metadata.hook_name == "blocks.3.hook_resid_pre"
    assert again.cfg.metadata.lp_norm == 1.0


def test_other_fields_are_kept(tmp_path: Path) -> None:
    model = sae_lens_model("topk")
    model.cfg.metadata.hook_name = "blocks.1.hook_mlp_out"
    model.cfg.metadata.something_new = {"of": [1, 2]}
    model.save_model(tmp_path / "theirs")
    sae = saefast.load_sae(tmp_path / "theirs")
    again = SaeLens.load_from_disk(saefast.save_sae(sae, tmp_path / "again"))
    assert again.cfg.metadata.hook_name == "blocks.1.hook_mlp_out"
    assert again.cfg.metadata.something_new == {"of": [1, 2]}


def test_topk_transcoders_of_equal_widths_are_saes_in_sae_lens(tmp_path: Path) -> None:
    sae = saefast.SAE(D, M, k=K, d_out=D, seed=0)
    randomise(sae)
    folder = saefast.save_sae(sae, tmp_path / "sae")
    assert_agree(sae, load_sae_lens(folder))
    assert saefast.load_sae(folder).transcodes
