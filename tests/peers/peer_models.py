"""Models of SAELens, sparsify and dictionary_learning, in memory and from their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dictionary_learning.dictionary as dl
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from peer_files import D, K, M, Peer, randomise
from sae_lens import SAE as SaeLens
from sae_lens.registry import get_sae_class
from sparsify import SparseCoder
from torch import Tensor


def as_peer(model: Any) -> Peer:
    """Return the results of a model of SAELens or dictionary_learning."""
    return Peer(model.encode, model.decode, model.forward)


def load_sae_lens(folder: Path) -> Peer:
    return as_peer(SaeLens.load_from_disk(folder))


def sae_lens_model(architecture: str, **settings: Any) -> Any:
    model_class, config_class = get_sae_class(architecture)
    settings = {"d_in": D, "d_sae": M} | settings
    if architecture in ("topk", "abstopk"):
        settings.setdefault("k", K)
    model = model_class(config_class(**settings))
    randomise(model)
    return model


def of_sparsify(model: SparseCoder) -> Peer:
    def encode(x: Tensor) -> Tensor:
        values, indices, _ = model.encode(x)
        return torch.zeros(len(x), M).scatter(1, indices, values)

    def decode(dense: Tensor) -> Tensor:
        return model.decode(*dense.topk(K))

    return Peer(encode, decode, lambda x: model(x).sae_out)


def load_sparsify(folder: Path) -> Peer:
    return of_sparsify(SparseCoder.load_from_disk(folder))


CLASSES: dict[str, Callable[[], Any]] = {
    "AutoEncoder": lambda: dl.AutoEncoder(D, M),
    "AutoEncoderNew": lambda: dl.AutoEncoderNew(D, M),
    "GatedAutoEncoder": lambda: dl.GatedAutoEncoder(D, M),
    "JumpReluAutoEncoder": lambda: dl.JumpReluAutoEncoder(D, M),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D, M, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, M, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, M, K, [20, M - 20]),
}


def load_dictionary_learning(folder: Path) -> Peer:
    config = json.loads((folder / "config.json").read_text())
    # Otherwise the values of an AutoEncoder are scaled at loading.
    if config["trainer"]["dict_class"] == "AutoEncoder":
        model = dl.AutoEncoder.from_pretrained(folder / "ae.pt", normalize_decoder=False)
    else:
        model, _ = load_dictionary(str(folder), "cpu")
    return as_peer(model)


def dictionary_learning_folder(folder: Path, kind: str, threshold: float = 0.6) -> Any:
    model = CLASSES[kind]()
    randomise(model)
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE", "AutoEncoderTopK"):
        model.threshold.fill_(threshold)
    folder.mkdir()
    torch.save(model.state_dict(), folder / "ae.pt")
    trainer = {
        "dict_class": kind,
        "activation_dim": D,
        "dict_size": M,
        "k": K,
        "lr": 3e-4,
        "seed": 5,
    }
    config = {"trainer": trainer, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    return model
