"""Options for the device of a language model."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loads import record_loads

from saefast import lm
from saefast.activations import StoreActivations
from saefast.cli import main
from saefast.disk.tables import read_json
from saefast.pipeline.stages import explain


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return record_loads(monkeypatch)


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("gpu", "device must be cpu, cuda or cuda:NUMBER, got 'gpu'"),
        ("meta", "device must be cpu, cuda or cuda:NUMBER, got 'meta'"),
        ("cuda", "finds no CUDA GPU; use device='cpu'"),
    ],
)
@pytest.mark.parametrize("command", ["harvest", "evaluate", "evaluate run"])
def test_errors_are_one_sentence_before_any_work(
    place: Path,
    tmp_path: Path,
    command: str,
    device: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, out = str(place / "model"), ["--out", str(tmp_path / "out")]
    arguments = {
        "harvest": ["harvest", model, *out],
        "evaluate": ["evaluate", str(place / "run" / "seed-0"), "probe", "--model", model, *out],
        "evaluate run": ["evaluate", str(place / "run"), "probe"],
    }[command]
    before = read_json(place / "run" / "settings.json")
    site = ["--site", "resid.1"] if command == "evaluate" else []
    _refused([*arguments, *site, "--device", device], sentence, capsys)
    assert not (tmp_path / "out").exists()
    assert read_json(place / "run" / "settings.json") == before


def test_several_processes_have_a_gpu_each(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["harvest", str(place / "model"), "--out", str(tmp_path / "out")]
    arguments += ["--device", "cuda:1", "--processes", "2"]
    _refused(arguments, "device must be cpu or cuda for several processes", capsys)
    assert not (tmp_path / "out").exists()


def test_a_harvest_loads_the_model_on_the_device(
    place: Path,
    tmp_path: Path,
    loaded: list[tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["harvest", str(place / "model"), "--text", str(place / "texts"), "--site", "1"]
    arguments += ["--tokens", "300", "--context", "16"]
    assert main([*arguments, "--out", str(tmp_path / "store"), "--device", "cuda"]) == 0
    assert loaded == [("model", "cuda")]
    assert StoreActivations(tmp_path / "store").rows == 300


def test_an_evaluation_of_a_run_loads_the_model_on_the_device(
    place: Path,
    tmp_path: Path,
    loaded: list[tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run")
    command = ["evaluate", str(run), "worth"]
    assert main([*command, "--device", "cuda:1"]) == 0
    assert loaded == [("model", "cuda:1")]
    assert read_json(run / "settings.json")["harvest"]["device"] == "cuda:1"
    assert main(command) == 0
    assert main([*command, "--device", "cpu", "--tokens", "64"]) == 0
    assert loaded[1:] == [("model", "cpu")]


def test_an_evaluation_of_saes_loads_the_model_on_the_device(
    place: Path, tmp_path: Path, loaded: list[tuple[str, str]]
) -> None:
    command = ["evaluate", str(place / "run" / "seed-0"), "probe", "--device", "cuda"]
    command += ["--tasks", str(place / "labelled.csv"), "--model", str(place / "model")]
    assert main([*command, "--site", "resid.1", "--out", str(tmp_path)]) == 0
    assert loaded == [("model", "cuda")]


def test_a_judge_is_on_the_device_of_the_model(
    place: Path,
    tmp_path: Path,
    loaded: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Judge and model have one device, whichever it is."""
    shutil.copytree(place / "model", tmp_path / "judge")
    run = shutil.copytree(place / "run", tmp_path / "run")
    monkeypatch.setattr(lm.LanguageModel, "device", torch.device("cuda:1"))
    monkeypatch.setattr(explain, "explain_saes", _Reached.reach)
    command = ["evaluate", str(run), "explain", "--judge", f"local:{tmp_path / 'judge'}"]
    with pytest.raises(_Reached):
        main([*command, "--debug"])
    assert loaded[-1] == ("judge", "cuda:1")


def test_runs_without_a_language_model_have_no_device_for_one(
    planted_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(planted_run), "worth", "--device", "cuda"]) == 1
    assert "device applies to language models only" in capsys.readouterr().err


def _refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.startswith("saefast: ")
    assert printed.count("\n") == 1


class _Reached(Exception):
    @classmethod
    def reach(cls, *_: Any, **__: Any) -> None:
        raise cls
