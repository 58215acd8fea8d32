"""Commands that read from and write to the Hugging Face hub."""

import json
from pathlib import Path

import pytest
import torch
from helpers.hub_server import TOKEN, Hub

import saefast
from saefast.cli import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a folder with two SAEs, as in a run."""
    for seed in (0, 5):
        sae = saefast.SAE(6, 20, k=3, seed=seed)
        saefast.save_sae(sae, tmp_path / "run" / f"seed-{seed}")
    return tmp_path / "run"


def test_the_saes_of_a_run_are_published_and_one_is_converted(
    hub: Hub,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(run), "lab/runs", "--subfolder", "mine/", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["commits"]) == 2
    folders = {Path(name).parent.as_posix() for name in hub.files("lab/runs")}
    assert folders == {"mine/seed-0", "mine/seed-5"}

    target = str(tmp_path / "converted")
    arguments = ["convert", "lab/runs", target, "--to", "sparsify", "--subfolder", "mine/seed-5"]
    assert main(arguments) == 0
    found = saefast.load_sae(target)
    assert torch.equal(found.W_dec, saefast.SAE(6, 20, k=3, seed=5).W_dec)


def test_one_sae_is_published_at_the_top(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(run / "seed-0"), "lab/one"]) == 0
    assert capsys.readouterr().out.startswith(f"published 1 SAE of {run / 'seed-0'}: http")
    assert set(hub.files("lab/one")) == {"cfg.json", "sae_weights.safetensors"}


def test_an_error_of_the_hub_is_one_line(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "lab/runs"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("saefast: the token for lab/runs on the hub at http")
    assert printed.count("\n") == 1
