"""train_saes on a simulated device has the bits of the CPU, for any delay of copies."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkout import CHECKOUT
from helpers.lifetimes import threads_named, without_collection
from helpers.simulated_streams import SimulatedDevice
from helpers.training_runs import (
    ROWS,
    assert_same_sae,
    checkpoint_of,
    config,
    files_of,
    steps_take,
    train,
)

from saefast.activations import IteratorActivations, StoreWriter
from saefast.train import loop as training
from saefast.train.checkpoint import RunFile
from saefast.train.seed_trainer import SeedTrainer

SEEDS = config(seeds=(0, 3))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimulatedDevice:
    """Return a device whose copies are late and whose steps are immediate."""
    device = SimulatedDevice()
    monkeypatch.setattr(training, "streams_of", lambda _: device)
    return device


def store_of(folder: Path, dtype: torch.dtype) -> str:
    with StoreWriter(folder, 16, dtype=dtype, rows_per_shard=400) as writer:
        writer.append(ROWS.to(dtype))
    return str(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bits_match_the_cpu(dtype, tmp_path, device, monkeypatch) -> None:
    store = store_of(tmp_path / "store", dtype)
    train(SEEDS, rows=store, out=tmp_path / "device", checkpoint_minutes=0)
    assert {kind for kind, _ in device.bus} == {dtype}
    monkeypatch.undo()
    train(SEEDS, rows=store, out=tmp_path / "cpu", checkpoint_minutes=0)
    assert files_of(tmp_path / "device") == files_of(tmp_path / "cpu")


def test_rows_stored_in_half_precision_are_used_exactly(tmp_path: Path) -> None:
    """On the CPU, too, batches have the dtype of the store."""
    (found,) = train(config(), rows=ROWS.bfloat16())
    (expected,) = train(config(), rows=ROWS.bfloat16().float())
    assert_same_sae(found, expected)


def test_a_bad_row_raises_before_its_step(device: SimulatedDevice, monkeypatch) -> None:
    long = torch.cat([ROWS] * 10)
    long[90 * 128 + 5, 3] = float("nan")
    taken: list[int] = []
    step = SeedTrainer.train

    def noted(trainer: SeedTrainer, number: int, batch: Any) -> None:
        taken.append(number)
        step(trainer, number, batch)

    monkeypatch.setattr(SeedTrainer, "train", noted)
    with pytest.raises(ValueError, match=rf"step 90 failed: .*row {90 * 128 + 5};"):
        train(config(tokens=128 * 100), rows=IteratorActivations([long]))
    assert taken == list(range(90))


def test_threads_that_read_end_with_a_failed_training(tmp_path, device, monkeypatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("the culprit")

    store = store_of(tmp_path / "store", torch.float32)
    monkeypatch.setattr(SeedTrainer, "train", fails)
    with without_collection(), pytest.raises(RuntimeError, match="the culprit") as caught:
        train(config(), rows=store)
    assert threads_named("windows") == threads_named("prefetch") == []
    del caught  # the error refers to the loop, which would otherwise be freed before


def test_a_source_that_ends_early_raises(device: SimulatedDevice) -> None:
    with pytest.raises(ValueError, match="source ended after 1500 rows"):
        train(config(), rows=iter([ROWS]))


def test_ctrl_c_waits_for_its_checkpoint(tmp_path, device, monkeypatch) -> None:
    step, save = SeedTrainer.train, RunFile.save

    def interrupted(trainer: SeedTrainer, number: int, batch: Any) -> None:
        if number == 12 and trainer.seed == 0:
            os.kill(os.getpid(), signal.SIGINT)
        step(trainer, number, batch)

    def slow(*arguments: Any) -> None:
        threading.Event().wait(0.2)
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SeedTrainer, "train", interrupted)
        patch.setattr(RunFile, "save", slow)
        with pytest.raises(KeyboardInterrupt):
            train(SEEDS, out=tmp_path)
    assert checkpoint_of(tmp_path) == 13
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    for actual, expected in zip(train(SEEDS, out=tmp_path, resume=True), train(SEEDS), strict=True):
        assert_same_sae(actual, expected)


@pytest.mark.parametrize("interrupt", [False, True])
def test_a_full_disk_ends_the_run(interrupt, tmp_path, device, monkeypatch) -> None:
    step, save = SeedTrainer.train, RunFile.save

    def interrupted(trainer: SeedTrainer, number: int, batch: Any) -> None:
        if number == 9 and trainer.seed == 0 and interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        step(trainer, number, batch)

    def full(run: RunFile, number: int, states: Any) -> None:
        if number == 10:
            raise OSError(errno.ENOSPC, "could not be written: No space left", "a file")
        save(run, number, states)

    with monkeypatch.context() as patch:
        patch.setattr(SeedTrainer, "train", interrupted)
        patch.setattr(RunFile, "save", full)
        with pytest.raises(OSError, match=r"checkpoint of step 10 .*No space.*step 9 is intact"):
            train(SEEDS, out=tmp_path, checkpoint_minutes=0)
    assert checkpoint_of(tmp_path) == 9
    resumed = train(SEEDS, out=tmp_path, resume=True)
    for actual, expected in zip(resumed, train(SEEDS), strict=True):
        assert_same_sae(actual, expected)


def test_a_full_disk_raises_before_the_next_checkpoint(tmp_path, device, monkeypatch) -> None:
    steps_take(60, monkeypatch)  # a checkpoint every ten steps
    step = SeedTrainer.train
    taken: list[int] = []

    def noted(trainer: SeedTrainer, number: int, batch: Any) -> None:
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()
        taken.append(number)
        step(trainer, number, batch)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "could not be written: No space left", "a file")

    monkeypatch.setattr(SeedTrainer, "train", noted)
    monkeypatch.setattr(RunFile, "save", full)
    with pytest.raises(OSError, match=r"checkpoint of step 10 .*No space.*step 0 is intact"):
        train(config(), out=tmp_path)
    assert taken == list(range(11))


def test_an_error_at_the_end_is_raised(tmp_path, device, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "could not be written: No space left", "a file")

    monkeypatch.setattr(RunFile, "save", full)
    with pytest.raises(OSError, match=r"checkpoint of step 32 .*No space"):
        train(SEEDS, out=tmp_path)
    assert not json.loads((tmp_path / "run.json").read_text())["finished"]


_KILLED_WHILE_WRITING = """
import os, pathlib, signal, sys
import safetensors.torch
sys.path.insert(0, {tests!r})
from helpers import simulated_streams, training_runs
from saefast.train import loop as training
device = simulated_streams.SimulatedDevice()
training.streams_of = lambda _: device
save_file = safetensors.torch.save_file
def killed(tensors, path, metadata):
    if path.name.startswith("step-9."):
        pathlib.Path(path.parent, ".tmpAbC123").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save_file(tensors, path, metadata)
safetensors.torch.save_file = killed
training_runs.train(training_runs.config(), out={out!r}, checkpoint_minutes=0)
"""


def test_a_kill_during_writing_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    train(config(), out=tmp_path / "unbroken")
    out = tmp_path / "broken"
    script = _KILLED_WHILE_WRITING.format(tests=str(CHECKOUT / "tests"), out=str(out))
    child = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert child.returncode == -signal.SIGKILL
    assert checkpoint_of(out) == 8
    train(config(), out=out, resume=True)
    assert files_of(out) == files_of(tmp_path / "unbroken")
