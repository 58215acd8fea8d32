"""OpenAI's files against plain formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sae_files import (
    B_DEC,
    DEC,
    OPENAI,
    K,
    M,
    X,
    assert_close,
    assert_computes,
    layer_norm,
    of_own_storage,
    top,
    values,
)
from helpers.tolerance import assert_same_bits

import saefast


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


def test_openai_relu_is_read_and_dense_activations_raise(tmp_path: Path) -> None:
    assert_computes(saefast.load_sae(openai(tmp_path / "a.pt", "ReLU")), values(X).relu())
    for activation, state in (("Identity", {}), ("TopK", {"k": K, "postact_fn": "Identity"})):
        with pytest.raises(ValueError, match="negative values are never active"):
            saefast.load_sae(openai(tmp_path / "b.pt", activation, **state))


def test_openai_frequencies_are_firing_rates(tmp_path: Path) -> None:
    (dictionary,) = saefast.load_dictionaries(openai(tmp_path / "a.pt", "ReLU"))
    assert_same_bits(dictionary.firing_rate, OPENAI["latents_activation_frequency"])
