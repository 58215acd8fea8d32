"""Gemma Scope and Qwen Scope, as released, against plain formulas."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sae_files import (
    B_DEC,
    B_ENC,
    D_OUT,
    DEC,
    ENC,
    LENS,
    THRESHOLD,
    D,
    K,
    M,
    X,
    above,
    assert_computes,
    draw,
    of_own_storage,
    top,
    values,
    write_config,
)
from helpers.tolerance import assert_same_bits
from safetensors.torch import save_file

import saefast


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_gemma_scope_computes_its_formula(
    tmp_path: Path, save: Callable[..., None], lower: bool
) -> None:
    arrays = {("w_enc" if lower else "W_enc"): ENC.T, ("w_dec" if lower else "W_dec"): DEC}
    arrays |= {"b_enc": B_ENC, "b_dec": B_DEC, "threshold": THRESHOLD}
    save(tmp_path / "params.npz", **{name: value.numpy() for name, value in arrays.items()})
    sae = saefast.load_sae(tmp_path)
    assert (sae.variant, sae.centred, sae.transcodes) == ("jumprelu", False, False)
    assert_computes(sae, above(values(X, centre=None), THRESHOLD))
    again = saefast.save_sae(sae, tmp_path / "again.npz", format="gemma_scope")
    assert_same_bits(saefast.load_sae(again)(X), sae(X))


@pytest.mark.parametrize("out", ["h", None])
def test_gemma_scope_without_another_output_is_no_transcoder(
    tmp_path: Path, out: str | None
) -> None:
    tensors = {"w_enc": ENC.T, "w_dec": DEC, "b_enc": B_ENC, "b_dec": B_DEC}
    tensors["threshold"] = THRESHOLD
    config = {"hf_hook_point_in": "h"} | ({} if out is None else {"hf_hook_point_out": out})
    write_config(tmp_path, "config.json", config)
    save_file(of_own_storage(tensors), tmp_path / "params.safetensors")
    assert not saefast.load_sae(tmp_path).transcodes


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


def test_qwen_scope_is_transposed(tmp_path: Path) -> None:
    contents = {"W_enc": ENC, "W_dec": DEC.T, "b_enc": B_ENC, "b_dec": B_DEC}
    torch.save(of_own_storage(contents), tmp_path / "layer0.sae.pt")
    with pytest.raises(ValueError, match="after L0_ in the name of its repository"):
        saefast.load_sae(tmp_path / "layer0.sae.pt")
    sae = saefast.load_sae(tmp_path / "layer0.sae.pt", k=K)
    assert_computes(sae, top(values(X, centre=None)))
    saefast.save_sae(sae, tmp_path / "again.pt", format="qwen_scope")
    assert_same_bits(saefast.load_sae(tmp_path / "again.pt")(X), sae(X))
    assert torch.load(tmp_path / "again.pt")["W_enc"].shape == (M, D)


def test_untransposed_tensors_are_not_qwen_scope(tmp_path: Path) -> None:
    torch.save(of_own_storage(LENS), tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError, match="alone do not determine the format"):
        saefast.load_sae(tmp_path / "a.pt", k=K)
