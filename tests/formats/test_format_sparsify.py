"""sparsify's folders against plain formulas."""

import json
from pathlib import Path

import pytest
import torch
from helpers.sae_files import (
    B_DEC,
    B_ENC,
    DEC,
    ENC,
    D,
    K,
    M,
    X,
    assert_computes,
    draw,
    safe,
    some_sae,
    top,
    top_in_size,
    values,
)
from helpers.tolerance import assert_same_bits
from safetensors.torch import load_file

import saefast


@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify_computes_its_formula(tmp_path: Path, transcode: bool) -> None:
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


def test_sparsify_signed_selects_by_absolute_value(tmp_path: Path) -> None:
    tensors = {"encoder.weight": ENC, "encoder.bias": B_ENC, "W_dec": DEC, "b_dec": B_DEC}
    config = {"d_in": D, "num_latents": M, "k": K, "signed": True}
    sae = saefast.load_sae(safe(tmp_path / "a", "sae.safetensors", tensors, **config))
    assert sae.variant == "abstopk"
    assert_computes(sae, top_in_size(values(X)))
    with pytest.raises(ValueError, match="stored as sparsify, which does not support variant"):
        saefast.save_sae(sae, tmp_path / "b", format="sparsify")


def test_states_of_a_sparsify_run_are_no_saes(tmp_path: Path) -> None:
    folder = saefast.save_sae(some_sae("topk"), tmp_path / "layers.3", format="sparsify")
    for name in ("optimizer_0", "lr_scheduler_0", "rank_0_state", "state"):
        torch.save({"global_step": torch.ones(())}, tmp_path / f"{name}.pt")
    with pytest.raises(FileNotFoundError, match=r"one of its folders: layers\.3"):
        saefast.load_sae(tmp_path)
    (dictionary,) = saefast.load_dictionaries(tmp_path)
    assert torch.equal(dictionary.W_dec, saefast.load_sae(folder).W_dec)


def test_sparsify_groupmax_is_refused(tmp_path: Path) -> None:
    tensors = {"encoder.weight": ENC, "encoder.bias": B_ENC, "W_dec": DEC, "b_dec": B_DEC}
    config = {"d_in": D, "num_latents": M, "k": K, "activation": "groupmax"}
    with pytest.raises(ValueError, match="activation must be 'topk'"):
        saefast.load_sae(safe(tmp_path / "a", "sae.safetensors", tensors, **config))
