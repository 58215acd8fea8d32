"""Folders of the BatchTopK repository against plain formulas."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sae_files import (
    B_DEC,
    DEC,
    ENC,
    LENS,
    THRESHOLD,
    D,
    K,
    M,
    X,
    above,
    assert_close,
    assert_computes,
    layer_norm,
    top,
    torch_folder,
    values,
)
from torch import Tensor

import saefast


def batch_folder(folder: Path, more: dict[str, Tensor] | None = None, **config: Any) -> Path:
    config = {"act_size": D, "dict_size": M, "top_k": K, "activation": "relu"} | config
    return torch_folder(folder, "sae.pt", LENS | (more or {}), **config)


def test_batch_topk_computes_its_formula(tmp_path: Path) -> None:
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


def test_batch_topk_normalises_rows(tmp_path: Path) -> None:
    sae = saefast.load_sae(batch_folder(tmp_path / "a", sae_type="topk", input_unit_norm=True))
    rows, mean, std = layer_norm(X)
    code = top(values(rows, b_enc=torch.zeros(M)))
    with torch.no_grad():
        assert_close(sae(X), (code @ DEC.double() + B_DEC.double()) * std + mean)


def test_batch_topk_needs_a_threshold(tmp_path: Path) -> None:
    folder = batch_folder(tmp_path / "a", sae_type="batchtopk")
    with pytest.raises(ValueError, match="depends on the whole batch"):
        saefast.load_sae(folder)
    sae = saefast.load_sae(folder, threshold=0.6)
    assert_computes(sae, above(values(X, b_enc=torch.zeros(M)), 0.6))
    assert saefast.load_dictionaries(folder)[0].m == M
