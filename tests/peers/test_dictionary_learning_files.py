"""saefast computes the same from a file of dictionary_learning, and vice versa."""

import json
from pathlib import Path

import pytest
import torch
from peer_files import K, M, assert_agree, assert_close, rows, there_and_back
from peer_models import (
    CLASSES,
    as_peer,
    dictionary_learning_folder,
    load_dictionary_learning,
    load_sae_lens,
)

import saefast


@pytest.mark.parametrize("kind", CLASSES)
def test_models_of_dictionary_learning_agree(tmp_path: Path, kind: str) -> None:
    model = dictionary_learning_folder(tmp_path / "trainer_0", kind)
    peer = as_peer(model)
    there_and_back(tmp_path / "trainer_0", peer, load_dictionary_learning, "dictionary_learning")
    then, now = (
        json.loads((tmp_path / folder / "config.json").read_text())
        for folder in ("trainer_0", "again")
    )
    assert now["trainer"]["dict_class"] == kind
    assert now["trainer"]["lr"] == then["trainer"]["lr"]
    if "group_sizes" in model.state_dict():
        assert torch.load(tmp_path / "again" / "ae.pt")["group_sizes"].tolist() == [20, M - 20]
    # A checkpoint of a run is one folder below.
    (tmp_path / "trainer_0" / "checkpoints").mkdir()
    moved = (tmp_path / "trainer_0" / "ae.pt").rename(tmp_path / "trainer_0/checkpoints/ae_5.pt")
    assert_agree(saefast.load_sae(moved), peer)


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_unset_thresholds_agree(tmp_path: Path, kind: str) -> None:
    model = dictionary_learning_folder(tmp_path / "trainer_0", kind, threshold=-1.0)
    assert_agree(saefast.load_sae(tmp_path / "trainer_0"), as_peer(model))


@pytest.mark.parametrize("kind", [k for k in CLASSES if k != "AutoEncoderNew"])
def test_backups_agree(tmp_path: Path, kind: str) -> None:
    """Backups are of activations divided by norm_factor, which `scale_biases` undoes at the end."""
    factor = 3.7
    model = dictionary_learning_folder(tmp_path / "trainer_0", kind)
    backup = {
        "step": 100,
        "ae": model.state_dict(),
        "optimizer": torch.optim.Adam(model.parameters()).state_dict(),
        "config": {"dict_class": kind, "k": K},
        "norm_factor": factor,
    }
    torch.save(backup, tmp_path / "trainer_0" / "ae.pt")
    (tmp_path / "trainer_0" / "config.json").unlink()
    sae = saefast.load_sae(tmp_path / "trainer_0")
    with torch.no_grad():
        model.scale_biases(factor)
    assert_agree(sae, as_peer(model), 3 * rows())
    again = saefast.save_sae(sae, tmp_path / "again", format="dictionary_learning")
    written = load_dictionary_learning(again)
    assert_agree(sae, written, 3 * rows())
    if "threshold" in model.state_dict():
        state = torch.load(again / "ae.pt")
        torch.testing.assert_close(state["threshold"], model.state_dict()["threshold"])
    lens = saefast.convert(tmp_path / "trainer_0", tmp_path / "lens", to="sae_lens")
    with torch.no_grad():
        assert_close(load_sae_lens(lens).encode(3 * rows()), model.encode(3 * rows()))
        assert_close(load_sae_lens(lens).forward(3 * rows()), model(3 * rows()))
