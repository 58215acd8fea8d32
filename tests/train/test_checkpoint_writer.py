"""Checkpoints of a GPU are written during training, each of one step, one at a time."""

import errno
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.lifetimes import without_collection
from helpers.simulated_streams import COPIES, MAIN, SimulatedDevice
from helpers.tolerance import assert_same_bits
from torch import Tensor

from saefast.train.checkpoint import RunFile
from saefast.train.checkpoint_writer import CheckpointWriter

LABELS = ("seed-0", "seed-1")


def run_in(out: Path) -> RunFile:
    run = RunFile(out, {"checkpoint": 0, "configs": [], "data": {}, "finished": False})
    run.write()
    return run


class Training:
    """Two SAEs on a simulated device, whose state is changed by steps."""

    def __init__(self, device: SimulatedDevice) -> None:
        with device.main():
            self.states = {
                label: {
                    "W_enc": device.on_device((3, 2), torch.float32).fill_(number),
                    "fired": device.on_device((3,), torch.int64).fill_(number),
                }
                for number, label in enumerate(LABELS)
            }

    def step(self) -> None:
        for state in self.states.values():
            for tensor in state.values():
                tensor.add_(10)


def written(out: Path, step: int) -> dict[str, dict[str, Tensor]]:
    run = RunFile.read(out)
    assert run is not None
    assert run.step == step
    like = {"W_enc": torch.empty(3, 2), "fired": torch.empty(3, dtype=torch.int64)}
    return {label: run.load(label, like) for label in LABELS}


def assert_state_of(out: Path, step: int) -> None:
    for number, state in enumerate(written(out, step).values()):
        assert_same_bits(state["W_enc"], torch.full((3, 2), 10.0 * step + number))
        assert_same_bits(state["fired"], torch.full((3,), 10 * step + number))


class Gate:
    """Block `RunFile.save` until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()
        self.threads: list[threading.Thread] = []
        save = RunFile.save

        def waiting(run: RunFile, step: int, states: Any) -> None:
            self.threads.append(threading.current_thread())
            self.reached.set()
            assert self.opened.wait(30)
            if error is not None:
                raise error
            save(run, step, states)

        patch.setattr(RunFile, "save", waiting)


@pytest.mark.parametrize("ahead", [[], [MAIN] * 30, [COPIES] * 30])
def test_a_checkpoint_holds_the_state_of_its_step(ahead: list[str], tmp_path: Path) -> None:
    device = SimulatedDevice()
    training = Training(device)
    with device.main(), CheckpointWriter(run_in(tmp_path), device) as writer:
        for step in range(1, 4):
            training.step()
            writer.save(step, training.states)
        training.step()
        for stream in ahead:
            device.go_on(stream)
    assert_state_of(tmp_path, 3)


def test_training_continues_while_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    device = SimulatedDevice()
    training = Training(device)
    with device.main(), CheckpointWriter(run_in(tmp_path), device) as writer:
        training.step()
        writer.save(1, training.states)
        assert gate.reached.wait(30)
        for _ in range(5):
            training.step()
            writer.check()
        device.finish()
        gate.opened.set()
    assert_state_of(tmp_path, 1)
    assert gate.threads[0] is not threading.current_thread()
    assert not gate.threads[0].is_alive()


def test_a_checkpoint_waits_for_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    device = SimulatedDevice()
    training = Training(device)
    with CheckpointWriter(run_in(tmp_path), device) as writer:
        with device.main():
            training.step()
            writer.save(1, training.states)
        assert gate.reached.wait(30)

        def second() -> None:
            with device.main():
                training.step()
                writer.save(2, training.states)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        gate.opened.set()
        thread.join(30)
        assert not thread.is_alive()
    assert_state_of(tmp_path, 2)


def test_pinned_memory_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimulatedDevice()
    training = Training(device)
    asked = []
    pinned = device.pinned
    monkeypatch.setattr(device, "pinned", lambda *kind: asked.append(kind) or pinned(*kind))
    with device.main(), CheckpointWriter(run_in(tmp_path), device) as writer:
        for step in range(1, 4):
            training.step()
            writer.save(step, training.states)
    assert len(asked) == 4
    assert_state_of(tmp_path, 3)


FULL = OSError(errno.ENOSPC, "could not be written: No space left", "a file")
REPORTED = (
    r"checkpoint of step 1 could not be written: No space.*the checkpoint of step 0 is intact"
)


@pytest.mark.parametrize("how", ["check", "save", "wait", "exit"])
def test_an_error_is_raised_at_the_next_call(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, FULL)
    device = SimulatedDevice()
    training = Training(device)
    writer = CheckpointWriter(run_in(tmp_path), device)
    with device.main():
        training.step()
        writer.save(1, training.states)
        writer.check()  # it is still being written
        gate.opened.set()
        gate.reached.wait(30)
        gate.threads[0].join(30)
        occasion = {
            "check": writer.check,
            "save": lambda: writer.save(2, training.states),
            "wait": writer.wait,
            "exit": lambda: writer.__exit__(None, None, None),
        }[how]
        kept: list[weakref.ref[torch.Tensor]] = []

        def fail() -> None:
            weight = torch.zeros(1)
            kept.append(weakref.ref(weight))
            occasion()

        with without_collection():
            with pytest.raises(OSError, match=REPORTED):
                fail()
            assert kept[0]() is None  # the error keeps no frame
    writer.wait()  # the error is raised once


def test_an_error_of_the_training_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, FULL)
    device = SimulatedDevice()
    training = Training(device)

    def broken() -> None:
        with device.main(), CheckpointWriter(run_in(tmp_path), device) as writer:
            writer.save(1, training.states)
            threading.Timer(0.05, gate.opened.set).start()
            raise KeyError("of the training")

    with pytest.raises(KeyError, match="of the training") as caught:
        broken()
    assert not gate.threads[0].is_alive()
    (note,) = caught.value.__notes__
    assert "besides, " in note
    assert "No space left" in note


def test_without_memory_for_a_copy_files_are_written_immediately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    gate.opened.set()
    device = SimulatedDevice()

    def none_left(*_: object) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(device, "pinned", none_left)
    states = {label: {"W_enc": torch.zeros(3, 2)} for label in LABELS}
    with CheckpointWriter(run_in(tmp_path), device) as writer:
        writer.save(1, states)
        assert_same_bits(written(tmp_path, 1)["seed-1"]["W_enc"], torch.zeros(3, 2))
    assert gate.threads == [threading.current_thread()]


def test_on_the_cpu_files_are_written_immediately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    gate.opened.set()
    states = {label: {"W_enc": torch.zeros(3, 2)} for label in LABELS}
    with CheckpointWriter(run_in(tmp_path), None) as writer:
        writer.save(1, states)
        for state in states.values():
            state["W_enc"] += 1
    assert_same_bits(written(tmp_path, 1)["seed-1"]["W_enc"], torch.zeros(3, 2))
    assert gate.threads == [threading.current_thread()]


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    """A state of another size would hold memory that was never written."""
    run = run_in(tmp_path)
    run.save(1, {label: {"W_enc": torch.zeros(3, 2)} for label in LABELS})
    with pytest.raises(ValueError, match="must hold 4 latents, got 3"):
        run.load("seed-1", {"W_enc": torch.empty(4, 2)})
