"""The device of a run's language model: checked first, and without effect on finished stages."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loads import record_loads
from helpers.tiny_lm import harvest_of, saved, write_texts

from saefast import TrainConfig
from saefast.disk.tables import read_json, write_json
from saefast.pipeline import HarvestSettings, RunSettings, TrainerSettings, run_pipeline
from saefast.pipeline.job import Job
from saefast.pipeline.settings_file import settings_from
from saefast.pipeline.stage_list import BY_NAME, digest
from saefast.pipeline.together import store_key, stream_key

pytestmark = pytest.mark.usefixtures("light")

UNTIL = "stability"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    folder = tmp_path_factory.mktemp("device")
    saved(folder / "model")
    write_texts(folder / "texts")
    return RunSettings(
        HarvestSettings(**harvest_of(folder, tokens=600, held_out=100)),
        TrainConfig(latents=40, k=3, seeds=(0, 1), tokens=800, batch_size=64),
        TrainerSettings(device="cpu"),
    )


def on(settings: RunSettings, device: str) -> RunSettings:
    assert isinstance(settings.data, HarvestSettings)
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, device=device))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return record_loads(monkeypatch)


@pytest.mark.parametrize("device", ["gpu", "meta", "mps", "none", ""])
def test_settings_with_an_unknown_device_are_refused(device: str) -> None:
    with pytest.raises(
        ValueError, match=rf"device must be cpu, cuda or cuda:NUMBER, got '{device}'"
    ):
        settings_from({"harvest": {"device": device}, "train": {"latents": 8}})


def test_a_missing_gpu_is_refused_before_anything_is_written(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device must be available, got 'cuda'"):
        run_pipeline(on(settings, "cuda"), tmp_path / "run", until="train", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_model_of_all_stages_is_on_the_device(
    settings: RunSettings, tmp_path: Path, loaded: list[tuple[str, str]]
) -> None:
    run_pipeline(on(settings, "cuda:1"), tmp_path, until="evaluate", progress=False)
    assert loaded == [("model", "cuda:1")] * 2  # in half precision, and in float32
    assert read_json(tmp_path / "settings.json")["harvest"]["device"] == "cuda:1"


def test_finished_stages_are_kept_on_another_device(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pipeline(settings, tmp_path, until=UNTIL, progress=False)
    older = read_json(tmp_path / "settings.json")
    assert older["harvest"].pop("device") == "cpu"
    write_json(tmp_path / "settings.json", older)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for again in (settings_from(older), on(settings, "cuda")):
        outcomes = run_pipeline(again, tmp_path, until=UNTIL, resume=True, progress=False)
        assert all(each.skipped for each in outcomes)
    begun: list[str] = []
    options: dict[str, Any] = {"resume": True, "progress": False, "tell": begun.append}
    with pytest.raises(ValueError, match=r"device must be available, got 'cuda'"):
        run_pipeline(on(settings, "cuda"), tmp_path, until="evaluate", **options)
    assert not begun


def test_records_from_before_there_was_a_choice_are_of_a_cpu(tmp_path: Path) -> None:
    """The names and hashes are those that earlier versions computed."""
    train = TrainConfig(latents=8, k=2, seeds=(0, 1))
    settings = RunSettings(HarvestSettings(model="m", tokens=100), train)
    assert store_key(settings) == "harvest-23322f6a395b"
    assert store_key(on(settings, "cpu:0")) == "harvest-23322f6a395b"
    assert "device" not in json.loads(stream_key(settings))[0]
    job = Job(tmp_path, settings)
    assert digest(job, BY_NAME["harvest"]) == "fea0acef0eb2f9570e54ff4d1f27f169"
    assert digest(job, BY_NAME["probe"]) == "346c8abcdf4b9286ed65b9a8d8ee66e2"


def test_stores_of_two_devices_have_two_names() -> None:
    settings = RunSettings(HarvestSettings(model="m"), TrainConfig(latents=8, k=2))
    gpu = on(settings, "cuda")
    assert store_key(gpu) != store_key(settings)
    assert stream_key(gpu) != stream_key(settings)
    assert store_key(gpu) == store_key(on(settings, "cuda:0"))
    assert stream_key(gpu) == stream_key(on(settings, "cuda:0"))
