"""Files of others' SAEs, built by hand from what is known of their layouts, against plain formulas.

What those libraries themselves make of them is compared in tests/peers.
"""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tolerance import assert_same_bits
from torch import Tensor

import saefast
from saefast import SAE, FusedStep
from saefast.formats import FORMATS
from saefast.formats.found import find

D, M, D_OUT, K = 10, 33, 14, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ENC, DEC = draw(M, D, seed=1) / 3, draw(M, D, seed=2)  # a row is a feature
B_ENC, B_DEC = draw(M, seed=3) / 2, draw(D, seed=4) / 2
THRESHOLD = draw(M, seed=5).abs() / 2
X = draw(40, D, seed=6) + 0.2


def values(
    x: Tensor, enc: Tensor = ENC, b_enc: Tensor = B_ENC, *, centre: Tensor | None = B_DEC
) -> Tensor:
    """Pre-activations in float64."""
    x = x.double() if centre is None else x.double() - centre.double()
    return x @ enc.double().T + b_enc.double()


def top(pre: Tensor, k: int = K) -> Tensor:
    kept = pre.relu().topk(k)
    return torch.zeros_like(pre).scatter(1, kept.indices, kept.values)


def above(pre: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.where(pre > threshold, pre, 0.0)


def layer_norm(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.double()
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    return (x - mean) / (std + 1e-5), mean, std


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    scale = expected.abs().max()
    assert scale > 0
    assert (actual.double() - expected).abs().max() <= 16 * torch.finfo(torch.float32).eps * scale


@torch.no_grad()
def assert_computes(
    sae: SAE, code: Tensor, dec: Tensor = DEC, b_dec: Tensor = B_DEC, extra: Tensor | None = None
) -> None:
    """These codes of X, and their reconstruction."""
    assert 0 < (code != 0).float().mean() < 1
    assert_close(sae.encode(X).to_dense(sae.m), code)
    expected = code @ dec.double() + b_dec.double()
    assert_close(sae(X), expected if extra is None else expected + extra)


def write_config(folder: Path, name: str, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config))


def of_own_storage(tensors: dict[str, Any]) -> dict[str, Any]:
    return {n: v.contiguous() if isinstance(v, Tensor) else v for n, v in tensors.items()}


def safe(folder: Path, name: str, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A folder with a safetensors file and cfg.json."""
    write_config(folder, "cfg.json", config)
    save_file(of_own_storage(tensors), folder / name)
    return folder


def torch_folder(folder: Path, name: str, contents: dict[str, Any], **config: Any) -> Path:
    """A folder with a torch file and config.json."""
    write_config(folder, "config.json", config)
    torch.save(of_own_storage(contents), folder / name)
    return folder


# SAELens

LENS = {"W_enc": ENC.T, "W_dec": DEC, "b_enc": B_ENC, "b_dec": B_DEC}
SIX = {"d_in": D, "d_sae": M, "metadata": {"sae_lens_version": "6.2.0"}}


def lens(folder: Path, more: dict[str, Tensor] | None = None, **config: Any) -> Path:
    return safe(folder, "sae_weights.safetensors", LENS | (more or {}), **SIX | config)


def test_sae_lens_rescaled_by_decoder_norms(tmp_path: Path) -> None:
    sae = saefast.load_sae(
        lens(tmp_path / "a", architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
    )
    norms = DEC.double().norm(dim=1)
    assert_computes(sae, top(values(X) * norms), DEC / norms[:, None])
    assert_close(sae.W_dec.norm(dim=1), torch.ones(M, dtype=torch.float64))


def test_sae_lens_checkpoint_with_one_threshold_and_a_scale(tmp_path: Path) -> None:
    folder = lens(
        tmp_path / "a",
        {"topk_threshold": torch.tensor(0.7, dtype=torch.float64)},
        architecture="batchtopk",
        k=4.4,
        normalize_activations="expected_average_only_in",
    )
    with pytest.raises(ValueError, match=r"folded .* only with activation_scaler.json"):
        saefast.load_sae(folder)
    write_config(folder, "activation_scaler.json", {"scaling_factor": 2.5})
    sae = saefast.load_sae(folder)
    assert (sae.variant, sae.k) == ("batchtopk", 4)
    pre = values(2.5 * X.double())
    assert_computes(sae, above(pre, 0.7), DEC / 2.5, B_DEC / 2.5)


def test_sae_lens_before_6(tmp_path: Path) -> None:
    config = {"d_in": D, "d_sae": M, "hook_point": "blocks.0.hook_z", "lr": 0.1}
    config |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    folder = safe(tmp_path / "a", "sae_weights.safetensors", LENS, **config)
    sae = saefast.load_sae(folder)
    assert_computes(sae, top(values(X)))
    written = json.loads((saefast.save_sae(sae, tmp_path / "b") / "cfg.json").read_text())
    assert written["architecture"] == "topk"
    assert written["reshape_activations"] == "hook_z"
    assert written["metadata"]["hook_name"] == "blocks.0.hook_z"
    assert written["metadata"]["lr"] == 0.1
    assert written["metadata"]["sae_lens_version"].startswith("6.")


def test_sae_lens_before_6_with_scaled_activations_is_refused(tmp_path: Path) -> None:
    config = {"d_in": D, "d_sae": M, "normalize_activations": True}
    folder = safe(tmp_path / "a", "sae_weights.safetensors", LENS, **config)
    with pytest.raises(ValueError, match="expected_average_only_in"):
        saefast.load_sae(folder)


def test_sae_lens_finetuned_scale_is_folded(tmp_path: Path) -> None:
    scale = torch.linspace(0.5, 2, M)
    folder = lens(
        tmp_path / "a",
        {"scaling_factor": scale},
        architecture="standard",
        finetuning_scaling_factor=True,
    )
    assert_computes(saefast.load_sae(folder), values(X).relu(), DEC * scale[:, None].double())
    silent = lens(tmp_path / "b", {"scaling_factor": scale}, architecture="standard")
    with pytest.raises(ValueError, match="scaling_factor is not 1"):
        saefast.load_sae(silent)


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_sae_lens_rows_that_are_normalised(tmp_path: Path, kind: str) -> None:
    folder = lens(tmp_path / "a", architecture="topk", k=K, normalize_activations=kind)
    sae = saefast.load_sae(folder)
    if kind == "layer_norm":
        rows, shift, scale = layer_norm(X)
    else:
        scale = X.double().norm(dim=1, keepdim=True) / D**0.5
        rows, shift = X.double() / scale, torch.zeros(())
    code = top(values(rows))
    with torch.no_grad():
        assert_close(sae.encode(X).to_dense(M), code)
        assert_close(sae(X), (code @ DEC.double() + B_DEC.double()) * scale + shift)
        with pytest.raises(ValueError, match=r"decode\(code, x\)"):
            sae.decode(sae.encode(X))


def test_sae_lens_unknown_fields_survive_several_formats(tmp_path: Path) -> None:
    metadata = {"sae_lens_version": "6.2.0", "hook_name": "blocks.1.x", "brand_new": [1]}
    folder = lens(tmp_path / "a", architecture="topk", k=K, metadata=metadata, lr_end=0.5)
    sparse = saefast.convert(folder, tmp_path / "b", to="sae_lens")
    sae = saefast.load_sae(sparse)
    assert sae.metadata["sae_lens"]["metadata"]["hook_name"] == "blocks.1.x"
    written = json.loads((saefast.save_sae(sae, tmp_path / "c") / "cfg.json").read_text())
    assert written["lr_end"] == 0.5
    assert written["metadata"]["brand_new"] == [1]


# sparsify


@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify(tmp_path: Path, transcode: bool) -> None:
    skip = draw(D, D, seed=9)
    tensors = {"encoder.weight": ENC, "encoder.bias": B_ENC, "W_dec": DEC, "b_dec": B_DEC}
    config = {"d_in": D, "num_latents": M, "k": K, "transcode": transcode, "signed": False}
    folder = safe(
        tmp_path / "a",
        "sae.safetensors",
        tensors | {"W_skip": skip},
        **config,
        skip_connection=True,
        mystery=3,
    )
    sae = saefast.load_sae(folder)
    code = top(values(X, centre=None if transcode else B_DEC))
    assert_computes(sae, code, extra=X.double() @ skip.double().T)
    again = saefast.save_sae(sae, tmp_path / "b", format="sparsify")
    assert json.loads((again / "cfg.json").read_text())["mystery"] == 3
    tensors["W_skip"] = skip
    for name, value in load_file(again / "sae.safetensors").items():
        assert_same_bits(value, tensors[name])
    plain = safe(tmp_path / "c", "sae.safetensors", tensors, **config, skip_connection=False)
    with pytest.raises(ValueError, match=r"skip_connection is false, but .* holds W_skip"):
        saefast.load_sae(plain)


def test_sparsify_groupmax_is_refused(tmp_path: Path) -> None:
    tensors = {"encoder.weight": ENC, "encoder.bias": B_ENC, "W_dec": DEC, "b_dec": B_DEC}
    config = {"d_in": D, "num_latents": M, "k": K, "activation": "groupmax"}
    with pytest.raises(ValueError, match="activation must be 'topk'"):
        saefast.load_sae(safe(tmp_path / "a", "sae.safetensors", tensors, **config))


# dictionary_learning

LINEAR = {"encoder.weight": ENC, "encoder.bias": B_ENC, "decoder.weight": DEC.T, "b_dec": B_DEC}
ONE = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.4)}


def trainer(kind: str, **more: Any) -> dict[str, Any]:
    return {"trainer": {"dict_class": kind, "activation_dim": D, "dict_size": M, "k": K} | more}


def test_dictionary_learning_topk_and_batchtopk_differ_in_the_config_alone(tmp_path: Path) -> None:
    contents = LINEAR | ONE
    topk = torch_folder(tmp_path / "a", "ae.pt", contents, **trainer("AutoEncoderTopK"))
    assert_computes(saefast.load_sae(topk), top(values(X)))
    batch = torch_folder(tmp_path / "b", "ae.pt", contents, **trainer("BatchTopKSAE"))
    assert_computes(saefast.load_sae(batch), above(values(X), 0.4))
    (batch / "config.json").unlink()
    with pytest.raises(ValueError, match="AutoEncoderTopK or a BatchTopKSAE"):
        saefast.load_sae(batch)


def test_dictionary_learning_gates(tmp_path: Path) -> None:
    r_mag, b_mag = draw(M, seed=11) / 3, draw(M, seed=12) / 3
    contents = {"encoder.weight": ENC, "decoder.weight": DEC.T, "decoder_bias": B_DEC}
    contents |= {"gate_bias": B_ENC, "mag_bias": b_mag, "r_mag": r_mag}
    sae = saefast.load_sae(torch_folder(tmp_path / "a", "ae.pt", contents))
    linear = values(X, b_enc=torch.zeros(M))
    magnitude = (linear * r_mag.double().exp() + b_mag.double()).relu()
    assert_computes(sae, torch.where(linear + B_ENC.double() > 0, magnitude, 0.0))


def test_dictionary_learning_backup_of_scaled_activations(tmp_path: Path) -> None:
    backup = {"step": 3, "ae": LINEAR | ONE, "optimizer": {}, "norm_factor": 2.0}
    folder = tmp_path / "a"
    torch_folder(folder, "ae.pt", backup, **trainer("BatchTopKSAE"))
    code = above(2 * values(X.double() / 2), 0.8)
    sae = saefast.load_sae(folder)
    assert_computes(sae, code, b_dec=2 * B_DEC)


def test_dictionary_learning_config_that_disagrees(tmp_path: Path) -> None:
    for key, value in (("dict_size", M + 1), ("k", K + 1), ("activation_dim", D - 1)):
        config = trainer("AutoEncoderTopK", **{key: value})
        folder = torch_folder(tmp_path / key, "ae.pt", LINEAR | ONE, **config)
        with pytest.raises(ValueError, match=f"{key} is .* say"):
            saefast.load_sae(folder)


# openai

OPENAI = {
    "encoder.weight": ENC,
    "decoder.weight": DEC.T,
    "pre_bias": B_DEC,
    "latent_bias": B_ENC,
    "stats_last_nonzero": torch.zeros(M, dtype=torch.int64),
    "latents_activation_frequency": torch.linspace(0, 0.5, M),
    "latents_mean_square": torch.zeros(M),
}


def openai(path: Path, activation: str, **state: Any) -> Path:
    contents = OPENAI | {"activation": activation, "activation_state_dict": state}
    torch.save(of_own_storage(contents), path)
    return path


def test_openai_topk_normalises_rows(tmp_path: Path) -> None:
    sae = saefast.load_sae(openai(tmp_path / "11.pt", "TopK", k=K, postact_fn="ReLU"))
    rows, mean, std = layer_norm(X)
    code = top(values(rows))
    with torch.no_grad():
        assert_close(sae.encode(X).to_dense(M), code)
        assert_close(sae(X), (code @ DEC.double() + B_DEC.double()) * std + mean)
    again = saefast.save_sae(sae, tmp_path / "again.pt", format="openai")
    contents = torch.load(again)
    assert contents["activation_state_dict"] == {"k": K, "postact_fn": "ReLU"}
    for name in ("encoder.weight", "decoder.weight", "pre_bias", "latent_bias"):
        assert_same_bits(contents[name], OPENAI[name])


def test_openai_relu_and_what_is_not_sparse(tmp_path: Path) -> None:
    assert_computes(saefast.load_sae(openai(tmp_path / "a.pt", "ReLU")), values(X).relu())
    for activation, state in (("Identity", {}), ("TopK", {"k": K, "postact_fn": "Identity"})):
        with pytest.raises(ValueError, match="below zero are not active"):
            saefast.load_sae(openai(tmp_path / "b.pt", activation, **state))


def test_openai_frequencies_are_firing_rates(tmp_path: Path) -> None:
    (dictionary,) = saefast.load_dictionaries(openai(tmp_path / "a.pt", "ReLU"))
    assert_same_bits(dictionary.firing_rate, OPENAI["latents_activation_frequency"])


# llamascopium

SCOPIUM = {"W_E": ENC.T, "b_E": B_ENC, "W_D": DEC, "b_D": B_DEC}


def scopium(folder: Path, more: dict[str, Tensor] | None = None, **config: Any) -> Path:
    hooks = {"hook_point_in": "h", "hook_point_out": "h"}
    config = {"sae_type": "sae", "d_model": D, "expansion_factor": M / D, "top_k": K} | config
    config = {"norm_activation": "inference"} | hooks | config
    write_config(folder, "config.json", config)
    # What is not measured is not initialised there.
    tensors = SCOPIUM | {"dataset_average_activation_norm.h": torch.tensor(torch.nan)}
    save_file(of_own_storage(tensors | (more or {})), folder / "sae_weights.safetensors")
    return folder


NORMS = DEC.double().norm(dim=1)
LOGGED = {"activation_function.log_jumprelu_threshold": THRESHOLD.log()}


@pytest.mark.parametrize("by_norm", [False, True])
def test_llamascopium(tmp_path: Path, by_norm: bool) -> None:
    def load(act_fn: str, more: dict[str, Tensor] | None = None) -> SAE:
        folder = tmp_path / act_fn
        config = {"act_fn": act_fn, "sparsity_include_decoder_norm": by_norm}
        return saefast.load_sae(scopium(folder, more, **config), threshold=0.9)

    pre = values(X, centre=None)
    scale = NORMS if by_norm else torch.ones(M, dtype=torch.float64)
    assert_computes(load("relu"), pre.relu())
    assert_computes(load("jumprelu", LOGGED), torch.where(pre * scale > THRESHOLD, pre, 0.0))
    assert_computes(load("topk"), top(pre * scale), DEC / scale[:, None])
    assert_computes(load("batchtopk"), above(pre * scale, 0.9), DEC / scale[:, None])


def test_llamascopium_scale_of_the_data_set_is_folded(tmp_path: Path) -> None:
    more = LOGGED | {"dataset_average_activation_norm.h": torch.tensor(8.0)}
    folder = scopium(tmp_path / "a", more, act_fn="jumprelu", norm_activation="dataset-wise")
    factor = D**0.5 / 8
    pre = values(factor * X.double(), centre=None)
    code = torch.where(pre * NORMS > THRESHOLD, pre, 0.0) / factor
    assert_computes(saefast.load_sae(folder), code, b_dec=B_DEC.double() / factor)
    out = more | {"dataset_average_activation_norm.o": torch.tensor(3.0)}
    folder = scopium(
        tmp_path / "b",
        out,
        act_fn="jumprelu",
        norm_activation="dataset-wise",
        hook_point_out="o",
    )
    sae, back = saefast.load_sae(folder), 3 / D**0.5
    assert sae.transcodes
    assert_computes(sae, code, DEC.double() * factor * back, B_DEC.double() * back)


def test_llamascopium_without_bias_in_a_torch_file(tmp_path: Path) -> None:
    folder = scopium(tmp_path / "a", act_fn="relu", use_decoder_bias=False)
    (folder / "sae_weights.safetensors").unlink()
    held = {name: value for name, value in SCOPIUM.items() if name != "b_D"}
    torch.save({"sae": of_own_storage(held), "version": "2.0"}, folder / "sae_weights.pt")
    sae = saefast.load_sae(folder)
    assert_computes(sae, values(X, centre=None).relu(), b_dec=torch.zeros(D))


def test_llamascopium_of_old(tmp_path: Path) -> None:
    config = {"d_model": D, "d_sae": M, "act_fn": "jumprelu", "jump_relu_threshold": 0.5}
    config |= {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": False}
    config |= {"hook_point_in": "h", "hook_point_out": "h"}
    config["dataset_average_activation_norm"] = {"in": 4.0, "out": 4.0}
    write_config(tmp_path / "a", "hyperparams.json", config)
    (tmp_path / "a" / "checkpoints").mkdir()
    tensors = {"encoder.weight": ENC, "encoder.bias": B_ENC}
    tensors |= {"decoder.weight": DEC.T, "decoder.bias": B_DEC}
    save_file(of_own_storage(tensors), tmp_path / "a" / "checkpoints" / "final.safetensors")
    factor = D**0.5 / 4
    code = above(values(factor * X.double(), centre=None), 0.5) / factor
    assert_computes(saefast.load_sae(tmp_path / "a"), code, b_dec=B_DEC.double() / factor)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"act_fn": "batchtopk"}, "give load_sae a threshold"),
        ({"act_fn": "topk", "sae_type": "crosscoder"}, "sae_type must be 'sae'"),
        ({"act_fn": "topk", "use_glu_encoder": True}, "use_glu_encoder must be False"),
        ({"act_fn": "topk", "norm_activation": "batch-wise"}, "depends on the batch"),
        ({"act_fn": "topk", "norm_activation": "dataset-wise"}, "positive number"),
        ({"act_fn": "topk", "expansion_factor": 5}, "W_E must have shape"),
        ({"act_fn": "topk", "d_model": 10**400}, "must give d_model as an integer"),
        ({"act_fn": "softmax"}, "act_fn must be"),
    ],
)
def test_llamascopium_that_cannot_be_had(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        saefast.load_sae(scopium(tmp_path / "a", **config))


# The BatchTopK repository


def batch_folder(folder: Path, more: dict[str, Tensor] | None = None, **config: Any) -> Path:
    config = {"act_size": D, "dict_size": M, "top_k": K, "activation": "relu"} | config
    return torch_folder(folder, "sae.pt", LENS | (more or {}), **config)


def test_batch_topk_repository(tmp_path: Path) -> None:
    bare = values(X, b_enc=torch.zeros(M))
    topk = batch_folder(tmp_path / "a", sae_type="topk", note="kept")
    assert_computes(saefast.load_sae(topk), top(bare))
    biased = batch_folder(tmp_path / "b", sae_type="topk", use_encoder_bias=True)
    assert_computes(saefast.load_sae(biased), top(values(X)))
    vanilla = batch_folder(tmp_path / "c", sae_type="vanilla")
    assert_computes(saefast.load_sae(vanilla), values(X).relu())
    logged = {"jumprelu.log_threshold": THRESHOLD.log()}
    jumps = batch_folder(tmp_path / "d", logged, sae_type="jumprelu")
    assert_computes(saefast.load_sae(jumps), above(values(X, centre=None), THRESHOLD))
    tied = batch_folder(tmp_path / "e", sae_type="topk", tied_weights=True)
    assert_computes(saefast.load_sae(tied), top(bare), ENC)
    again = saefast.save_sae(saefast.load_sae(topk), tmp_path / "f", format="batch_topk")
    assert json.loads((again / "config.json").read_text())["note"] == "kept"


def test_batch_topk_repository_normalises_rows(tmp_path: Path) -> None:
    sae = saefast.load_sae(batch_folder(tmp_path / "a", sae_type="topk", input_unit_norm=True))
    rows, mean, std = layer_norm(X)
    code = top(values(rows, b_enc=torch.zeros(M)))
    with torch.no_grad():
        assert_close(sae(X), (code @ DEC.double() + B_DEC.double()) * std + mean)


def test_batch_topk_repository_does_not_know_its_threshold(tmp_path: Path) -> None:
    folder = batch_folder(tmp_path / "a", sae_type="batchtopk")
    with pytest.raises(ValueError, match="depends on the whole batch"):
        saefast.load_sae(folder)
    sae = saefast.load_sae(folder, threshold=0.6)
    assert_computes(sae, above(values(X, b_enc=torch.zeros(M)), 0.6))
    assert saefast.load_dictionaries(folder)[0].m == M


# Gemma Scope and Qwen Scope


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_gemma_scope(tmp_path: Path, save: Callable[..., None], lower: bool) -> None:
    arrays = {("w_enc" if lower else "W_enc"): ENC.T, ("w_dec" if lower else "W_dec"): DEC}
    arrays |= {"b_enc": B_ENC, "b_dec": B_DEC, "threshold": THRESHOLD}
    save(tmp_path / "params.npz", **{name: value.numpy() for name, value in arrays.items()})
    sae = saefast.load_sae(tmp_path)
    assert (sae.variant, sae.centred, sae.transcodes) == ("jumprelu", False, False)
    assert_computes(sae, above(values(X, centre=None), THRESHOLD))
    again = saefast.save_sae(sae, tmp_path / "again.npz", format="gemma_scope")
    assert_same_bits(saefast.load_sae(again)(X), sae(X))


def test_gemma_scope_transcoder_with_a_skip(tmp_path: Path) -> None:
    dec, b_dec, skip = draw(M, D_OUT, seed=21), draw(D_OUT, seed=22), draw(D, D_OUT, seed=23)
    tensors = {"w_enc": ENC.T, "w_dec": dec, "b_enc": B_ENC, "b_dec": b_dec}
    tensors |= {"threshold": THRESHOLD, "affine_skip_connection": skip}
    write_config(tmp_path, "config.json", {"architecture": "jump_relu", "l0": 20})
    save_file(of_own_storage(tensors), tmp_path / "params.safetensors")
    sae = saefast.load_sae(tmp_path)
    code = above(values(X, centre=None), THRESHOLD)
    assert_computes(sae, code, dec, b_dec, X.double() @ skip.double())
    again = saefast.load_sae(saefast.save_sae(sae, tmp_path / "lens"))
    assert_same_bits(again(X), sae(X))
    assert again.metadata["gemma_scope"]["l0"] == 20


def test_qwen_scope_lies_the_other_way_round(tmp_path: Path) -> None:
    contents = {"W_enc": ENC, "W_dec": DEC.T, "b_enc": B_ENC, "b_dec": B_DEC}
    torch.save(of_own_storage(contents), tmp_path / "layer0.sae.pt")
    with pytest.raises(ValueError, match="after L0_ in the name of its repository"):
        saefast.load_sae(tmp_path / "layer0.sae.pt")
    sae = saefast.load_sae(tmp_path / "layer0.sae.pt", k=K)
    assert_computes(sae, top(values(X, centre=None)))
    saefast.save_sae(sae, tmp_path / "again.pt", format="qwen_scope")
    assert_same_bits(saefast.load_sae(tmp_path / "again.pt")(X), sae(X))
    assert torch.load(tmp_path / "again.pt")["W_enc"].shape == (M, D)


# All of them

HOLDS = {
    "sae_lens": ("topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"),
    "sparsify": ("topk",),
    "dictionary_learning": ("topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"),
    "openai": ("relu",),
    "llamascopium": ("topk", "batchtopk", "matryoshka", "relu", "jumprelu"),
    "batch_topk": ("topk", "batchtopk", "relu", "jumprelu"),
    "gemma_scope": ("batchtopk", "matryoshka", "relu", "jumprelu"),
    "qwen_scope": ("topk",),
}
CASES = [(name, variant) for name, variants in HOLDS.items() for variant in variants]


def some_sae(variant: str, seed: int = 0, **settings: Any) -> SAE:
    sae = SAE(D, M, variant=variant, k=K, seed=seed, **settings)
    with torch.no_grad():
        for i, value in enumerate(sae.state_dict().values()):
            drawn = draw(*value.shape, seed=100 + i) / 2
            value.copy_(drawn if value.ndim == 2 else drawn.abs())
    return sae


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_what_is_written_is_recognised_and_computes_the_same(
    tmp_path: Path, name: str, variant: str, centred: bool
) -> None:
    sae = some_sae(variant, centred=centred)
    path = saefast.save_sae(sae, tmp_path / "a", format=name)
    found = find(path)
    assert [module.NAME for module in FORMATS.values() if module.recognises(found)] == [name]
    with torch.no_grad():
        loaded = saefast.load_sae(path)
        assert_close(loaded.encode(X).to_dense(M), sae.encode(X).to_dense(M).double())
        assert_close(loaded(X), sae(X).double())
    folder = saefast.convert(path, tmp_path / "b")
    assert_same_bits(saefast.load_sae(folder)(X), loaded(X))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_does_not_have_is_refused(tmp_path: Path, name: str) -> None:
    misfits = {
        "variant": some_sae("gated"),
        "skip": some_sae("topk", skip=True),
        "transcoder": some_sae("topk", d_out=D_OUT),
        "normalise": some_sae("relu", normalise="norm"),
    }
    for sae in misfits.values():
        try:
            path = saefast.save_sae(sae, tmp_path / "sae", format=name)
        except ValueError as error:
            assert "cannot be stored as" in str(error)  # noqa: PT017
            assert list(tmp_path.iterdir()) == []
            continue
        assert_close(saefast.load_sae(path)(X), sae(X).double())
        saefast.save_sae(sae, tmp_path / "other")
        for made in tmp_path.iterdir():
            for file in made.iterdir():
                file.unlink()
            made.rmdir()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    """bfloat16 stays; float16, which nothing here computes with, becomes float32, exactly."""
    tensors = {name: value.to(dtype) for name, value in LENS.items()}
    config = SIX | {"architecture": "topk", "k": K}
    sae = saefast.load_sae(safe(tmp_path / "a", "sae_weights.safetensors", tensors, **config))
    assert sae.W_dec.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert torch.equal(sae.W_enc.detach(), ENC.to(dtype).to(sae.W_enc.dtype))


def test_a_file_that_may_be_of_two_formats_asks(tmp_path: Path) -> None:
    square = draw(D, D)
    contents = {"W_enc": square, "W_dec": square, "b_enc": B_DEC, "b_dec": B_DEC}
    config = {"act_size": D, "dict_size": D, "d_in": D, "d_sae": D}
    folder = torch_folder(tmp_path / "a", "sae.pt", contents, **config)
    with pytest.raises(ValueError, match="may be of the format sae_lens or batch_topk"):
        saefast.load_sae(folder)


@pytest.mark.parametrize("variant", ["topk", "jumprelu", "gated"])
def test_without_its_config_a_file_is_nobodys(tmp_path: Path, variant: str) -> None:
    """SAELens's JumpReLU has the tensors of Gemma Scope's, which computes something else."""
    folder = saefast.save_sae(some_sae(variant), tmp_path / "sae")
    (folder / "cfg.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"cfg\.json does not exist"):
        saefast.load_sae(folder)


def test_four_tensors_the_usual_way_round_are_not_qwen_scope(tmp_path: Path) -> None:
    torch.save(of_own_storage(LENS), tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError, match="alone do not say what they are"):
        saefast.load_sae(tmp_path / "a.pt", k=K)


@pytest.mark.parametrize("variant", ["jumprelu", "gated", "relu", "matryoshka"])
def test_classes_of_dictionary_learning_show_without_a_config(tmp_path: Path, variant: str) -> None:
    sae = some_sae(variant)
    folder = saefast.save_sae(sae, tmp_path / "a", format="dictionary_learning")
    (folder / "config.json").unlink()
    assert_close(saefast.load_sae(folder)(X), sae(X).double())


# Models that only files of others have


@pytest.mark.parametrize("centred", [True, False])
def test_b_dec_learns_by_its_gradient_centred_or_not(centred: bool) -> None:
    sae = some_sae("topk", centred=centred)
    (sae(X) - X).square().sum().backward()
    gradient, before = sae.b_dec.grad, sae.b_dec.detach().clone()
    assert gradient is not None
    sae.zero_grad()
    FusedStep(sae, lr=0.01, rules=saefast.Rules(unit_norm=False))(X)
    # The first step of Adam is as long as the rate, whatever the gradient's size.
    torch.testing.assert_close(sae.b_dec.detach(), before - 0.01 * gradient.sign())


@pytest.mark.parametrize("settings", [{"skip": True}, {"normalise": "layer_norm"}])
def test_what_is_not_trained_says_so(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="neither normalise rows nor have a skip connection"):
        FusedStep(SAE(D, M, k=K, **settings))


def test_what_only_plain_saes_have() -> None:
    for more in ({"centred": True}, {"normalise": "norm"}):
        with pytest.raises(ValueError, match="d_out must be d"):
            SAE(D, M, d_out=D_OUT, **more)


# Broken files

Break = Callable[[Path], None]


def changed(**tensors: Tensor | None) -> Break:
    def apply(folder: Path) -> None:
        held = load_file(folder / "sae_weights.safetensors") | tensors
        kept = {name: value for name, value in held.items() if value is not None}
        save_file(of_own_storage(kept), folder / "sae_weights.safetensors")

    return apply


def configured(**config: Any) -> Break:
    def apply(folder: Path) -> None:
        said = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(said | config))

    return apply


def put(name: str, content: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content) and None


WEIGHTS = "sae_weights.safetensors"
BROKEN: dict[str, tuple[Break, str]] = {
    "truncated": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-5]) and None,
        "truncated or not a safetensors file",
    ),
    "empty": (put(WEIGHTS, b""), "truncated or not a safetensors file"),
    "huge header": (put(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), "header would be 1152921504"),
    "deep header": (put(WEIGHTS, struct.pack("<Q", 4000) + b"[" * 4000), "truncated or not"),
    "not tensors": (put(WEIGHTS, b"PK\x03\x04 but no archive"), "truncated or not"),
    "key missing": (changed(b_enc=None), r"b_enc is missing; the file holds W_dec, W_enc, b_dec"),
    "key more": (changed(W_more=torch.ones(2)), "does not have: 'W_more'"),
    "path as a key": (changed(**{"../../b": torch.ones(2)}), r"does not have: '../../b'"),
    "encoder transposed": (changed(W_enc=ENC), r"W_enc must have shape .*transposed\?"),
    "decoder transposed": (changed(W_dec=DEC.T), r"W_dec must have shape .*transposed\?"),
    "no matrix": (changed(W_dec=DEC.flatten()), r"W_dec must have shape \(33, 10\), got \(330,\)"),
    "NaN": (changed(W_dec=torch.full((M, D), torch.nan)), "W_dec holds NaN or infinity"),
    "infinity": (changed(b_dec=torch.full((D,), -torch.inf)), "b_dec holds NaN or infinity"),
    "integers": (changed(b_enc=torch.ones(M, dtype=torch.int64)), "b_enc must hold floats"),
    "other size": (configured(d_sae=M + 1), r"W_enc must have shape \(10, 34\), got \(10, 33\)"),
    "immense size": (configured(d_sae=10**30), "W_enc must have shape"),
    "negative size": (configured(d_in=-1), "W_enc must have shape"),
    "k too large": (configured(k=M + 1), "k must be from 1 to 33"),
    "k no number": (configured(k="five"), "must give k as an integer, got 'five'"),
    "k true": (configured(k=True), "must give k as an integer"),
    "other architecture": (configured(architecture="temporal"), "architecture must be one of"),
    "architecture no name": (configured(architecture=[1]), "architecture must be one of"),
    "other activation": (configured(activation_fn="tanh-relu"), "activation_fn must be"),
    "other scale": (configured(normalize_activations="zca"), "normalize_activations must be"),
    "other shape": (configured(reshape_activations="heads"), "reshape_activations must be"),
    "config a list": (put("cfg.json", b"[1]"), "must hold a JSON object, got list"),
    "config deep": (put("cfg.json", b"[" * 100_000), "is not JSON"),
    "config no text": (put("cfg.json", b"\xff\xfe\x00"), "is not JSON"),
    "sparsity too short": (
        lambda f: save_file({"sparsity": torch.zeros(3)}, f / "sparsity.safetensors"),
        r"sparsity must have shape \(33,\), got \(3,\)",
    ),
    "sparsity NaN": (
        lambda f: save_file({"sparsity": torch.full((M,), torch.nan)}, f / "sparsity.safetensors"),
        "sparsity holds NaN",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_name_themselves_and_the_tensor(tmp_path: Path, case: str) -> None:
    folder = lens(tmp_path / "sae", architecture="topk", k=K)
    saefast.load_sae(folder)
    apply, message = BROKEN[case]
    apply(folder)
    with pytest.raises(ValueError, match=message) as raised:
        saefast.load_sae(folder)
    assert str(folder) in str(raised.value) or "k must be" in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae"]


def test_folders_without_an_sae(tmp_path: Path) -> None:
    (tmp_path / "layers.3").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no SAE.*perhaps.*layers\.3"):
        saefast.load_sae(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        saefast.load_sae(tmp_path / "nowhere")
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    with pytest.raises(FileNotFoundError, match=r"cfg.json does not exist.*\('a'\)"):
        saefast.load_sae(tmp_path)
    write_config(tmp_path, "config.json", {})
    with pytest.raises(ValueError, match="of no known format"):
        saefast.load_sae(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "2.safetensors")
    with pytest.raises(ValueError, match=r"several files of tensors, 1.*, 2.*give the path"):
        saefast.load_sae(tmp_path)


class Grenade:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Swollen:
    """Unpickled, it is a gigabyte; torch sees no harm in that."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (2**30,)


@pytest.mark.parametrize("archive", [True, False])
def test_nothing_is_unpickled_unasked(tmp_path: Path, archive: bool) -> None:
    file, proof = tmp_path / "a.pt", tmp_path / "proof"
    contents = OPENAI | {"activation": "ReLU", "note": Grenade(proof)}
    torch.save(of_own_storage(contents), file, _use_new_zipfile_serialization=archive)
    with pytest.raises(ValueError, match=r"a\.pt holds Python objects .*allow_pickle=True"):
        saefast.load_sae(file)
    assert not proof.exists()
    sae = saefast.load_sae(file, allow_pickle=True)
    assert proof.exists()
    assert_computes(sae, values(X).relu())


def test_modules_are_read_by_their_state_where_that_is_allowed(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.encoder, module.decoder = torch.nn.Linear(D, M), torch.nn.Linear(M, D)
    torch.save(module, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="allow_pickle"):
        saefast.load_sae(tmp_path / "a.pt")
    sae = saefast.load_sae(tmp_path / "a.pt", allow_pickle=True)
    with torch.no_grad():
        assert_close(sae(X), module.decoder(module.encoder(X).relu()).double())


def test_files_do_not_grow_when_they_are_read(tmp_path: Path) -> None:
    claimed = OPENAI | {"encoder.weight": torch.ones(1, 1).expand(2**20, 2**20)}
    torch.save(claimed, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"encoder.weight has shape \(1048576, 1048576\), more"):
        saefast.load_sae(tmp_path / "a.pt")
    np.savez_compressed(tmp_path / "b.npz", W_enc=np.zeros((1000, 1000), np.float32))
    with pytest.raises(ValueError, match="would grow from"):
        saefast.load_sae(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", W_enc=np.array([{}]))
    with pytest.raises(ValueError, match=r"c\.npz: W_enc cannot be read: it holds Python objects"):
        saefast.load_sae(tmp_path / "c.npz")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00\xff\xff{'descr'")
    with pytest.raises(ValueError, match=r"d\.npz: W_enc cannot be read"):
        saefast.load_sae(tmp_path / "d.npz")
    torch.save({"encoder.weight": ENC, "more": Swollen()}, tmp_path / "f.pt")
    with pytest.raises(ValueError, match=r"f\.pt holds Python objects"):
        saefast.load_sae(tmp_path / "f.pt")
    (tmp_path / "e.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"e\.pt is truncated or not a torch file"):
        saefast.load_sae(tmp_path / "e.pt")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("written")
    return {
        name: saefast.save_sae(some_sae(variants[-1]), folder / name, format=name)
        for name, variants in HOLDS.items()
    }


@settings(max_examples=150)
@given(data=st.data())
def test_bytes_gone_wrong_raise_nothing_unexpected(
    written: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    """An SAE, or an error that says what is wrong; never another one."""
    source = written[data.draw(st.sampled_from(sorted(written)))]
    file = data.draw(st.sampled_from(sorted(source.iterdir())))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            # Headers are short, and where the trouble is.
            end = data.draw(st.sampled_from([min(400, len(content)), len(content)]))
            content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    for old in tmp_path.iterdir():
        old.unlink()
    for other in source.iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    (tmp_path / file.name).write_bytes(content)
    try:
        sae = saefast.load_sae(tmp_path)
    except (ValueError, OSError) as error:
        assert str(tmp_path) in str(error) or "must be" in str(error)  # noqa: PT017
    else:
        assert all(bool(value.isfinite().all()) for value in sae.state_dict().values())


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=150)
@given(data=st.data())
def test_settings_gone_wrong_raise_nothing_unexpected(
    written: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    source = written[data.draw(st.sampled_from([name for name in written if name in WITH_CONFIG]))]
    file = next(file for file in source.iterdir() if file.suffix == ".json")
    config = json.loads(file.read_text())
    place = config
    while True:
        key = data.draw(
            st.sampled_from([*sorted(place), "k", "activation_fn", "normalize_activations"])
        )
        if not isinstance(place.get(key), dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(ANYTHING)
    for other in source.iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    (tmp_path / file.name).write_text(json.dumps(config))
    try:
        sae = saefast.load_sae(tmp_path)
    except (ValueError, OSError) as error:
        assert str(tmp_path) in str(error) or "must be" in str(error)  # noqa: PT017
    else:
        assert (sae.d, sae.m) == (D, M)
        saefast.save_sae(sae, tmp_path.parent / "again")


WITH_CONFIG = ("sae_lens", "sparsify", "dictionary_learning", "llamascopium", "batch_topk")


# Dictionaries


def test_dictionaries_of_a_run_come_in_order_with_their_rates(tmp_path: Path) -> None:
    rates = torch.tensor([0.0, 1e-9, 1e-3, 1.0]).repeat(9)[:M]
    run = tmp_path / "run"
    for seed in (10, 2):
        sae = some_sae("topk", seed)
        saefast.storage.save_into(run / f"seed-{seed}", sae, rates)
        with torch.no_grad():
            sae.W_dec.fill_(seed)
        saefast.storage.save_into(run / f"seed-{seed}", sae)
    saefast.save_sae(some_sae("topk"), run / "pooled")
    (run / "matches").mkdir()
    first, second = saefast.load_dictionaries(run)
    assert (float(first.W_dec[0, 0]), float(second.W_dec[0, 0])) == (2.0, 10.0)
    assert first.W_enc is None
    torch.testing.assert_close(first.firing_rate, rates, rtol=1e-4, atol=0)
    assert torch.equal(first.alive, rates > 0)
    assert saefast.match_features(first, first).partner[1] == 1
    both = saefast.load_dictionaries(run, run / "pooled", encoder=True)
    assert len(both) == 3
    assert_same_bits(both[2].W_enc, saefast.load_sae(run / "pooled").W_enc.detach())


def test_dictionaries_of_sparsify_seeds_and_sweeps(tmp_path: Path) -> None:
    for seed in (0, 11, 2):
        sae = some_sae("topk", seed)
        with torch.no_grad():
            sae.W_dec.fill_(seed + 1)
        saefast.save_sae(sae, tmp_path / "layers.3" / f"seed{seed}", format="sparsify")
        saefast.save_sae(sae, tmp_path / "dl" / f"trainer_{seed}", format="dictionary_learning")
    for folder in ("layers.3", "dl"):
        dictionaries = saefast.load_dictionaries(tmp_path / folder)
        assert [float(d.W_dec[0, 0]) for d in dictionaries] == [1.0, 3.0, 12.0]
    with pytest.raises(FileNotFoundError, match=r"give one of its folders: dl, layers\.3"):
        saefast.load_dictionaries(tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        saefast.load_dictionaries()


def test_firing_rates_come_along_where_both_formats_have_them(tmp_path: Path) -> None:
    rates = torch.linspace(0, 1, M)
    saefast.storage.save_into(tmp_path / "a", some_sae("relu"), rates)
    file = saefast.convert(tmp_path / "a", tmp_path / "b.pt", to="openai")
    (dictionary,) = saefast.load_dictionaries(file)
    torch.testing.assert_close(dictionary.firing_rate, rates, rtol=1e-5, atol=1e-9)


def anonymous_memory() -> int:
    """Bytes of this process that lie in no file."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
@pytest.mark.parametrize("name", ["sae_lens", "sparsify", "dictionary_learning", "gemma_scope"])
def test_dictionaries_are_mapped_not_read(tmp_path: Path, name: str) -> None:
    m, d = 20_000, 256
    with torch.device("meta"):
        sae = SAE(d, m, variant="jumprelu" if name == "gemma_scope" else "topk", device="meta")
    sae = sae.to_empty(device="cpu")
    with torch.no_grad():
        for value in sae.state_dict().values():
            value.fill_(0.5)
    size = sae.W_dec.nbytes
    path = saefast.save_sae(sae, tmp_path / "sae", format=name)
    del sae
    saefast.load_dictionaries(path)
    before = anonymous_memory()
    (dictionary,) = saefast.load_dictionaries(path, encoder=True)
    total = float(dictionary.W_dec.sum()) + float(dictionary.W_enc.sum())
    assert anonymous_memory() - before < size / 4
    assert total == m * d
