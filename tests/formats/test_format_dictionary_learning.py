"""dictionary_learning's folders, with and without a config, against plain formulas."""

from pathlib import Path
from typing import Any

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
    above,
    assert_close,
    assert_computes,
    draw,
    some_sae,
    top,
    torch_folder,
    values,
)

import saefast

LINEAR = {"encoder.weight": ENC, "encoder.bias": B_ENC, "decoder.weight": DEC.T, "b_dec": B_DEC}
ONE = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.4)}


def trainer(kind: str, **more: Any) -> dict[str, Any]:
    return {"trainer": {"dict_class": kind, "activation_dim": D, "dict_size": M, "k": K} | more}


def test_topk_and_batchtopk_differ_only_in_the_config(tmp_path: Path) -> None:
    contents = LINEAR | ONE
    topk = torch_folder(tmp_path / "a", "ae.pt", contents, **trainer("AutoEncoderTopK"))
    assert_computes(saefast.load_sae(topk), top(values(X)))
    batch = torch_folder(tmp_path / "b", "ae.pt", contents, **trainer("BatchTopKSAE"))
    assert_computes(saefast.load_sae(batch), above(values(X), 0.4))
    (batch / "config.json").unlink()
    with pytest.raises(ValueError, match="AutoEncoderTopK or a BatchTopKSAE"):
        saefast.load_sae(batch)


def test_gated_saes_compute_their_formula(tmp_path: Path) -> None:
    r_mag, b_mag = draw(M, seed=11) / 3, draw(M, seed=12) / 3
    contents = {"encoder.weight": ENC, "decoder.weight": DEC.T, "decoder_bias": B_DEC}
    contents |= {"gate_bias": B_ENC, "mag_bias": b_mag, "r_mag": r_mag}
    sae = saefast.load_sae(torch_folder(tmp_path / "a", "ae.pt", contents))
    linear = values(X, b_enc=torch.zeros(M))
    magnitude = (linear * r_mag.double().exp() + b_mag.double()).relu()
    assert_computes(sae, torch.where(linear + B_ENC.double() > 0, magnitude, 0.0))


def test_backups_of_scaled_activations_are_rescaled(tmp_path: Path) -> None:
    backup = {"step": 3, "ae": LINEAR | ONE, "optimizer": {}, "norm_factor": 2.0}
    folder = tmp_path / "a"
    torch_folder(folder, "ae.pt", backup, **trainer("BatchTopKSAE"))
    code = above(2 * values(X.double() / 2), 0.8)
    sae = saefast.load_sae(folder)
    assert_computes(sae, code, b_dec=2 * B_DEC)


def test_an_inconsistent_config_raises(tmp_path: Path) -> None:
    for key, value in (("dict_size", M + 1), ("k", K + 1), ("activation_dim", D - 1)):
        config = trainer("AutoEncoderTopK", **{key: value})
        folder = torch_folder(tmp_path / key, "ae.pt", LINEAR | ONE, **config)
        with pytest.raises(ValueError, match=f"{key} is .* say"):
            saefast.load_sae(folder)


@pytest.mark.parametrize("variant", ["jumprelu", "gated", "relu", "matryoshka"])
def test_classes_are_detected_without_a_config(tmp_path: Path, variant: str) -> None:
    sae = some_sae(variant)
    folder = saefast.save_sae(sae, tmp_path / "a", format="dictionary_learning")
    (folder / "config.json").unlink()
    assert_close(saefast.load_sae(folder)(X), sae(X).double())
    assert len(saefast.load_dictionaries(folder)[0].W_dec) == M
