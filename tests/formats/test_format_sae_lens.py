"""SAELens's folders, of version 6 and before, against plain formulas."""

import json
from pathlib import Path

import pytest
import torch
from helpers.sae_files import (
    B_DEC,
    DEC,
    LENS,
    D,
    K,
    M,
    X,
    above,
    assert_close,
    assert_computes,
    layer_norm,
    lens,
    safe,
    top,
    top_in_size,
    values,
    write_config,
)

import saefast


def test_sae_lens_rescaled_by_decoder_norms(tmp_path: Path) -> None:
    sae = saefast.load_sae(
        lens(tmp_path / "a", architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
    )
    norms = DEC.double().norm(dim=1)
    assert_computes(sae, top(values(X) * norms), DEC / norms[:, None])
    assert_close(sae.W_dec.norm(dim=1), torch.ones(M, dtype=torch.float64))


def test_sae_lens_by_absolute_value(tmp_path: Path) -> None:
    sae = saefast.load_sae(lens(tmp_path / "a", architecture="abstopk", k=K))
    assert (sae.variant, sae.k) == ("abstopk", K)
    assert (sae.encode(X).values < 0).any()
    assert_computes(sae, top_in_size(values(X)))
    again = saefast.save_sae(sae, tmp_path / "b")
    config = json.loads((again / "cfg.json").read_text())
    assert (config["architecture"], config["k"]) == ("abstopk", K)
    assert config["rescale_acts_by_decoder_norm"] is False
    rescaled = saefast.load_sae(
        lens(tmp_path / "c", architecture="abstopk", k=K, rescale_acts_by_decoder_norm=True)
    )
    norms = DEC.double().norm(dim=1)
    assert_computes(rescaled, top_in_size(values(X) * norms), DEC / norms[:, None])


def test_sae_lens_checkpoint_with_one_threshold_and_a_scale(tmp_path: Path) -> None:
    folder = lens(
        tmp_path / "a",
        {"topk_threshold": torch.tensor(0.7, dtype=torch.float64)},
        architecture="batchtopk",
        k=4.4,
        normalize_activations="expected_average_only_in",
    )
    with pytest.raises(ValueError, match=r"needs activation_scaler.json"):
        saefast.load_sae(folder)
    write_config(folder, "activation_scaler.json", {"scaling_factor": 2.5})
    sae = saefast.load_sae(folder)
    assert (sae.variant, sae.k) == ("batchtopk", 4)
    pre = values(2.5 * X.double())
    assert_computes(sae, above(pre, 0.7), DEC / 2.5, B_DEC / 2.5)


def test_sae_lens_before_6_computes_its_formula(tmp_path: Path) -> None:
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
def test_sae_lens_normalises_rows(tmp_path: Path, kind: str) -> None:
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


def test_unknown_fields_survive_conversions(tmp_path: Path) -> None:
    metadata = {"sae_lens_version": "6.2.0", "hook_name": "blocks.1.x", "brand_new": [1]}
    folder = lens(tmp_path / "a", architecture="topk", k=K, metadata=metadata, lr_end=0.5)
    sparse = saefast.convert(folder, tmp_path / "b", to="sae_lens")
    sae = saefast.load_sae(sparse)
    assert sae.metadata["sae_lens"]["metadata"]["hook_name"] == "blocks.1.x"
    written = json.loads((saefast.save_sae(sae, tmp_path / "c") / "cfg.json").read_text())
    assert written["lr_end"] == 0.5
    assert written["metadata"]["brand_new"] == [1]
