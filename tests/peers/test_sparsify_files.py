"""sparsify writes a file, saefast computes the same; saefast writes it, sparsify agrees."""

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
def test_sparsify(tmp_path: Path, transcode: bool, skip: bool) -> None:
    config = SparseCoderConfig(
        num_latents=M, k=K, transcode=transcode, skip_connection=skip, multi_topk=False
    )
    model = SparseCoder(D, config)
    randomise(model)
    model.save_to_disk(tmp_path / "layers.3")
    there_and_back(tmp_path / "layers.3", of_sparsify(model), load_sparsify, "sparsify")
    settings = json.loads((tmp_path / "again" / "cfg.json").read_text())
    assert settings["normalize_decoder"] is True


def test_sparsify_by_expansion_factor(tmp_path: Path) -> None:
    model = SparseCoder(D, SparseCoderConfig(expansion_factor=3, k=K))
    model.save_to_disk(tmp_path / "layers.3")
    assert saefast.load_sae(tmp_path / "layers.3").m == 3 * D


def test_sae_lens_reads_sparsify_wrongly_and_we_do_not(tmp_path: Path) -> None:
    """sparsify's decoder lies as its encoder does, [m, d], which is what SAELens wants. Its reader
    transposes it all the same, which shows where m is not d; and it does not take b_dec from x
    where the decoder is normalised, which sparsify always does."""
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
