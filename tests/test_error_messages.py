"""Common mistakes: every error names the argument, the value, and a remedy."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import saefast
from saefast import SAE, TrainConfig, train_saes

X = torch.randn(64, 8)
SAES = [SAE(8, 20, k=2, seed=seed) for seed in (0, 1)]
CONFIG = TrainConfig(latents=20, k=2, tokens=64, batch_size=32)
STABILITY = saefast.score_stability(SAES, progress=False)
PEER: Any = SimpleNamespace(W_dec=X)  # an SAE of another library


def train(activations: Any = X, config: Any = CONFIG, **options: Any) -> Any:
    return train_saes(activations, config, progress=False, **options)


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "config is a dict": (
        lambda: train(config={"latents": 20}),
        TypeError,
        "config must be a saefast.TrainConfig or a sequence of them, got dict",
    ),
    "rules are a dict": (
        lambda: TrainConfig(latents=20, k=2, rules={"clip": 1}),  # type: ignore[arg-type]
        TypeError,
        "rules must be a saefast.Rules, such as Rules(), got dict",
    ),
    "auxk is a bool": (
        lambda: TrainConfig(latents=20, k=2, auxk=True),  # type: ignore[arg-type]
        TypeError,
        "auxk must be a saefast.AuxK, such as AuxK() or None, got bool",
    ),
    "a latent is dead at once": (
        lambda: saefast.AuxK(dead_after=0),
        ValueError,
        "dead_after must be at least 1, got 0",
    ),
    "dead latents are a share": (
        lambda: saefast.AuxK(capacity=0.125),  # type: ignore[arg-type]
        TypeError,
        "capacity must be an int, got float",
    ),
    "seeds are a list": (
        lambda: TrainConfig(latents=20, k=2, seeds=[0, 1]),  # type: ignore[arg-type]
        TypeError,
        "such as (0, 1, 2), got [0, 1]",
    ),
    "rows have three dimensions": (
        lambda: train(X.view(4, 16, 8)),
        ValueError,
        "activations must have shape [n, d], got (4, 16, 8)",
    ),
    "no such device": (
        lambda: train(device="gpu"),
        ValueError,
        "device must be cpu, cuda or cuda:NUMBER, got 'gpu'",
    ),
    "an SAE alone": (
        lambda: saefast.score_stability(SAES[0]),  # type: ignore[arg-type]
        TypeError,
        "dictionaries must be a sequence of tensors [m, d], saefast.SAE or saefast.Dictionary "
        "objects, got SAE",
    ),
    "a path": (
        lambda: saefast.score_stability("run"),  # type: ignore[arg-type]
        TypeError,
        "got str; saefast.load_dictionaries reads files and folders",
    ),
    "paths": (
        lambda: saefast.match_features(Path("a"), Path("b")),  # type: ignore[arg-type]
        TypeError,
        "saefast.load_dictionaries reads files and folders",
    ),
    "arrays": (
        lambda: saefast.score_stability([X.numpy(), X.numpy()]),  # type: ignore[list-item]
        TypeError,
        "dictionaries[0] must be a tensor [m, d], a saefast.SAE or a saefast.Dictionary, got "
        "ndarray; torch.from_numpy makes a tensor of it",
    ),
    "a peer's SAE": (
        lambda: saefast.match_features(PEER, PEER),
        TypeError,
        "give its W_dec, if a row is a feature, or save it and use saefast.load_sae",
    ),
    "arguments in another order": (
        lambda: saefast.fit_subspaces(STABILITY, SAES),  # type: ignore[arg-type]
        TypeError,
        "dictionaries must be a sequence",
    ),
    "a peer's SAE measured": (
        lambda: saefast.feature_statistics(PEER, X, progress=False),
        TypeError,
        "saes[0] must be a saefast.SAE, got SimpleNamespace",
    ),
    "one threshold": (
        lambda: saefast.measure_overlap(*SAES, thresholds=0.7),  # type: ignore[arg-type]
        TypeError,
        "thresholds must be a sequence of numbers such as [0.7], got 0.7",
    ),
    "one way of matching": (
        lambda: saefast.measure_overlap(*SAES, match="nearest"),
        TypeError,
        "match must be a sequence of str such as ['nearest'], got 'nearest'",
    ),
    "shares swapped": (
        lambda: STABILITY.groups(0.2, 0.8),
        ValueError,
        "stable must be a share above unstable, 0.8, and at most 1, got 0.2",
    ),
    "rows of another width": (
        lambda: SAES[0].encode(X[:, :5]),
        ValueError,
        "x must have the width of the SAE, 8, got (64, 5)",
    ),
    "an array encoded": (
        lambda: SAES[0].encode(np.ones((3, 8))),  # type: ignore[arg-type]
        TypeError,
        "x must be a torch.Tensor [n, d], got ndarray",
    ),
    "rows decoded": (
        lambda: SAES[0].decode(X),  # type: ignore[arg-type]
        TypeError,
        "code must be a SparseCode, as encode returns, got Tensor",
    ),
    "a pair of tensors decoded": (
        lambda: SAES[0].decode((X, X)),  # type: ignore[arg-type]
        TypeError,
        "code must be a SparseCode, as encode returns, got tuple",
    ),
    "weights saved": (
        lambda: saefast.save_sae(SAES[0].state_dict(), "x"),  # type: ignore[arg-type]
        TypeError,
        "sae must be a saefast.SAE, got OrderedDict",
    ),
    "nothing loaded": (
        lambda: saefast.load_sae(None),  # type: ignore[arg-type]
        TypeError,
        "path must be a str or Path, got NoneType",
    ),
    "a name on the hub": (
        lambda: saefast.load_dictionaries("someone/their-sae"),
        FileNotFoundError,
        "give the folder that saefast.download_sae('someone/their-sae') returns",
    ),
    "a list of paths": (
        lambda: saefast.load_dictionaries(["a", "b"]),  # type: ignore[arg-type]
        TypeError,
        "got list; pass a list as load_dictionaries(*paths)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_errors_name_the_argument_and_the_remedy(mistake: str) -> None:
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_missing_gpu_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"device must be available, .* finds no CUDA GPU; use device='cpu'"
    ):
        train(device="cuda")


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_place_of_the_run_raises(tmp_path: Path, below: str) -> None:
    (tmp_path / "notes").write_text("kept")
    out = tmp_path / "notes" / below
    with pytest.raises(NotADirectoryError, match="is not a folder, or is below a file") as raised:
        train(out=out)
    assert raised.value.filename == str(out)
    assert (tmp_path / "notes").read_text() == "kept"
