"""Devices of language models: refused before anything is read, and recorded by stores.

Harvests of a GPU are harvests of a CPU model that names another device.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.inline_workers import Inline, use
from helpers.tiny_lm import TEXTS, llama, saved

from saefast.activations import StoreActivations
from saefast.lm import LanguageModel, harvest, load_model
from saefast.lm import model as lm_model
from saefast.sweep import harvest_by_processes

pytestmark = pytest.mark.usefixtures("light")

SETTINGS: dict[str, Any] = {"corpus": TEXTS, "context": 16, "progress": False}
SETTINGS |= {"rows_per_shard": 20, "resume": True}


class OnGpu(LanguageModel):
    """Model that names a GPU as its device, and computes on the CPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:1")


def on_gpu() -> LanguageModel:
    tiny = llama()
    return OnGpu(tiny.model, tiny.tokenizer, tiny.name)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x"])
def test_an_unknown_device_is_refused_before_the_model_is_read(tmp_path: Path, device: str) -> None:
    with pytest.raises(ValueError, match=r"device must be cpu, cuda or cuda:NUMBER, got 'c?"):
        load_model(tmp_path / "none", device=device)


def test_a_missing_gpu_is_refused_before_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"finds no CUDA GPU; use device='cpu'"):
        load_model(tmp_path / "none", device="cuda")


@pytest.mark.usefixtures("two_gpus")
def test_a_number_beyond_the_gpus_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'cuda:2', but there are 2 CUDA GPUs"):
        load_model(tmp_path / "none", device="cuda:2")
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "none", device="cuda:1")


def test_other_devices_of_torch_can_hold_a_model(tmp_path: Path) -> None:
    assert load_model(saved(tmp_path), device="meta").device.type == "meta"


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)]
)
def test_fast_is_the_dtype_that_the_gpu_multiplies(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def of(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", of)
    assert lm_model._dtype("fast", torch.device("cuda:1")) == expected
    assert asked == [torch.device("cuda:1")]


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_of_two_devices_are_not_mixed(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Inline())

    def write(model: LanguageModel, out: str) -> None:
        options = {**SETTINGS, "out": tmp_path / out, "tokens": 100}
        if processes == 1:
            harvest(model, 1, **options)
        else:
            harvest_by_processes(model, 1, processes=processes, **options)

    assert "device" not in _by_one(llama(), tmp_path / "cpu", 60)
    with pytest.raises(ValueError, match="device was 'cpu' and is now 'cuda'"):
        write(on_gpu(), "cpu")
    assert _by_one(on_gpu(), tmp_path / "gpu", 60)["device"] == "cuda"
    with pytest.raises(ValueError, match="device was 'cuda' and is now 'cpu'"):
        write(llama(), "gpu")
    assert StoreActivations(tmp_path / "gpu").rows == 60
    assert _by_one(on_gpu(), tmp_path / "gpu", 100)["device"] == "cuda"
    assert StoreActivations(tmp_path / "gpu").rows == 100


def test_workers_load_the_model_on_the_only_gpu_that_they_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = use(monkeypatch, Inline(lambda _: "not performed"))
    options = {**SETTINGS, "processes": 2, "tokens": 100}
    with pytest.raises(RuntimeError, match="not performed"):
        harvest_by_processes(on_gpu(), 1, out=tmp_path / "s", **options)
    assert {record["device"] for record in hands.records} == {"cuda"}


def _by_one(model: LanguageModel, out: Path, tokens: int) -> dict[str, Any]:
    harvest(model, 1, out=out, tokens=tokens, **SETTINGS)
    return StoreActivations(out).index.metadata
