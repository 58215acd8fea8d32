"""llamascopium's folders and the released Llama Scope against plain formulas."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sae_files import (
    B_DEC,
    B_ENC,
    DEC,
    ENC,
    THRESHOLD,
    D,
    K,
    M,
    X,
    above,
    assert_computes,
    of_own_storage,
    top,
    values,
    write_config,
)
from safetensors.torch import save_file
from torch import Tensor

import saefast
from saefast import SAE

SCOPIUM = {"W_E": ENC.T, "b_E": B_ENC, "W_D": DEC, "b_D": B_DEC}


def scopium(folder: Path, more: dict[str, Tensor] | None = None, **config: Any) -> Path:
    hooks = {"hook_point_in": "h", "hook_point_out": "h"}
    config = {"sae_type": "sae", "d_model": D, "expansion_factor": M / D, "top_k": K} | config
    config = {"norm_activation": "inference"} | hooks | config
    write_config(folder, "config.json", config)
    # Norms that were not measured are uninitialised there.
    tensors = SCOPIUM | {"dataset_average_activation_norm.h": torch.tensor(torch.nan)}
    save_file(of_own_storage(tensors | (more or {})), folder / "sae_weights.safetensors")
    return folder


NORMS = DEC.double().norm(dim=1)
LOGGED = {"activation_function.log_jumprelu_threshold": THRESHOLD.log()}


@pytest.mark.parametrize("by_norm", [False, True])
def test_llamascopium_computes_its_formula(tmp_path: Path, by_norm: bool) -> None:
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
def test_llama_scope_computes_its_formula(
    tmp_path: Path, by_norm: bool, centred: bool, act_fn: str
) -> None:
    """Released files are for a loader that folds norms before it compares with the threshold.

    The norms are of the data set, which SAELens folds as well, and of the decoder.
    """
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
    for path in ("a", "a/checkpoints/final.safetensors"):
        sae = saefast.load_sae(tmp_path / path)
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
        ({"act_fn": "topk", "norm_activation": "batch-wise"}, "depend on the batch"),
        ({"act_fn": "topk", "norm_activation": "dataset-wise"}, "positive number"),
        ({"act_fn": "topk", "expansion_factor": 5}, "W_E must have shape"),
        ({"act_fn": "topk", "d_model": 10**400}, "must give d_model as an integer"),
        ({"act_fn": "softmax"}, "act_fn must be"),
    ],
)
def test_unsupported_llamascopium_raises(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        saefast.load_sae(scopium(tmp_path / "a", **config))
