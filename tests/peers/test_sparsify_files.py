"""saefast computes the same from a file of sparsify, and vice versa."""

import json
from pathlib import Path

import pytest
import torch
from peer_files import D, K, M, assert_agree, assert_close, randomise, rows, there_and_back
from peer_models import load_sae_lens, load_sparsify, of_sparsify
from sae_lens.loading import pretrained_sae_loaders as loaders
from sparsify import SparseCoder, SparseCoderConfig

import saefast


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_models_of_sparsify_agree(tmp_path: Path, transcode: bool, skip: bool) -> None:
    config = SparseCoderConfig(
        num_latents=M, k=K, transcode=transcode, skip_connection=skip, multi_topk=False
    )
    model = SparseCoder(D, config)
    randomise(model)
    model.save_to_disk(tmp_path / "layers.3")
    there_and_back(tmp_path / "layers.3", of_sparsify(model), load_sparsify, "sparsify")
    settings = json.loads((tmp_path / "again" / "cfg.json").read_text())
    assert settings["normalize_decoder"] is True


def test_models_with_an_expansion_factor_agree(tmp_path: Path) -> None:
    model = SparseCoder(D, SparseCoderConfig(expansion_factor=3, k=K))
    model.save_to_disk(tmp_path / "layers.3")
    assert saefast.load_sae(tmp_path / "layers.3").m == 3 * D


def test_sae_lens_misreads_sparsify(tmp_path: Path) -> None:
    """SAELens transposes sparsify's decoder, which is [m, d] already.

    This shows if m is not d. Unlike sparsify, it also does not subtract b_dec from x if the decoder
    is normalised.
    """
    model = SparseCoder(D, SparseCoderConfig(num_latents=M, k=K))
    randomise(model)
    model.save_to_disk(tmp_path / "layers.3")
    config, tensors = loaders.sparsify_disk_loader(tmp_path / "layers.3")
    assert tensors["W_dec"].shape == (D, M)
    assert config["apply_b_dec_to_input"] is False
    converted = saefast.convert(tmp_path / "layers.3", tmp_path / "converted", to="sae_lens")
    assert_agree(saefast.load_sae(converted), of_sparsify(model))
    theirs = load_sae_lens(converted)
    with torch.no_grad():
        assert_close(theirs.forward(rows()), model(rows()).sae_out)
