"""Files of others' SAEs, built by hand from what is known of their layouts, against plain formulas.

What those libraries themselves make of them is compared in tests/peers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_files import (
    B_DEC,
    B_ENC,
    D_OUT,
    DEC,
    ENC,
    HOLDS,
    LENS,
    OPENAI,
    SIX,
    THRESHOLD,
    D,
    K,
    M,
    X,
    above,
    assert_close,
    assert_computes,
    draw,
    layer_norm,
    lens,
    of_own_storage,
    safe,
    some_sae,
    top,
    torch_folder,
    values,
    write_config,
)
from safetensors.torch import load_file, save_file
from tolerance import assert_same_bits
from torch import Tensor

import saefast
from saefast import SAE, FusedStep
from saefast.formats import FORMATS
from saefast.formats.found import find

# SAELens


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
    assert_computes(load("topk"), top(pre * scale) / scale)
    assert_computes(load("batchtopk"), above(pre * scale, 0.9) / scale)


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


@pytest.mark.parametrize("act_fn", ["jumprelu", "topk"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("by_norm", [False, True])
def test_llama_scope(tmp_path: Path, by_norm: bool, centred: bool, act_fn: str) -> None:
    """What was released is meant for a loader that folds the data set's norm and the decoder's
    norms first, and compares values with the threshold then. SAELens agrees on the data set's."""
    config = {"d_model": D, "d_sae": M, "act_fn": act_fn, "top_k": 50, "jump_relu_threshold": 0.5}
    config |= {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": by_norm}
    config |= {"apply_decoder_bias_to_pre_encoder": centred, "device": "cuda", "dtype": "bfloat16"}
    config |= {"hook_point_in": "h", "hook_point_out": "h"}
    config["dataset_average_activation_norm"] = {"in": 4.0, "out": 4.0}
    write_config(tmp_path / "a", "hyperparams.json", config)
    (tmp_path / "a" / "checkpoints").mkdir()
    tensors = {"encoder.weight": ENC, "encoder.bias": B_ENC}
    tensors |= {"decoder.weight": DEC.T, "decoder.bias": B_DEC}
    save_file(of_own_storage(tensors), tmp_path / "a" / "checkpoints" / "final.safetensors")
    factor = D**0.5 / 4
    scale = NORMS if by_norm else torch.ones(M, dtype=torch.float64)
    pre = values(factor * X.double(), centre=B_DEC if centred else None) / factor * scale
    sae = saefast.load_sae(tmp_path / "a")
    assert_computes(sae, above(pre, 0.5), DEC / scale[:, None], B_DEC.double() / factor)
    saefast.save_sae(sae, tmp_path / "b", format="llamascopium")
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert not {"device", "dtype", "apply_decoder_bias_to_pre_encoder"} & written.keys()


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

CASES = [(name, variant) for name, variants in HOLDS.items() for variant in variants]


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


def test_choosing_by_norm_is_for_topk() -> None:
    with pytest.raises(ValueError, match="by_norm must be False unless variant is 'topk'"):
        SAE(D, M, variant="relu", by_norm=True)


@torch.no_grad()
def test_latents_that_add_nothing_are_never_chosen_by_norm() -> None:
    sae = some_sae("topk", by_norm=True)
    sae.W_dec[1::2] = 0.0
    code = sae.encode(X)
    assert bool(code.values.isfinite().all())
    assert bool((code.indices[code.values > 0] % 2 == 0).all())
    assert bool((code.values > 0).any())


@pytest.mark.parametrize(
    "settings", [{"skip": True}, {"normalise": "layer_norm"}, {"by_norm": True}]
)
def test_what_is_not_trained_says_so(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must not normalise rows, choose by norm or have"):
        FusedStep(SAE(D, M, k=K, **settings))


def test_what_only_plain_saes_have() -> None:
    for more in ({"centred": True}, {"normalise": "norm"}):
        with pytest.raises(ValueError, match="d_out must be d"):
            SAE(D, M, d_out=D_OUT, **more)
