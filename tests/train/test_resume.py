"""An interrupted run resumes and ends like an uninterrupted one."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkout import CHECKOUT
from helpers.training_runs import (
    LONGER,
    ROWS,
    assert_same_sae,
    checkpoint_of,
    config,
    files_of,
    metrics_of,
    steps_take,
    train,
)

from saefast import Rules, load_sae
from saefast.activations import StoreWriter
from saefast.disk import atomic
from saefast.sae import VARIANTS
from saefast.train.checkpoint import RunFile, differences
from saefast.train.seed_trainer import SeedTrainer
from saefast.train.trained_run import TrainedRun

_CHILD = """
import sys
sys.path.insert(0, {tests!r})
from helpers import training_runs
training_runs.train(
    training_runs.LONGER, rows={store!r}, out={out!r}, resume=True, checkpoint_minutes=0
)
"""


def test_a_run_killed_anywhere_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    store, unbroken, broken = (tmp_path / name for name in ("store", "unbroken", "broken"))
    with StoreWriter(store, 16, dtype=torch.float32, rows_per_shard=400) as writer:
        writer.append(ROWS)
    train(LONGER, rows=store, out=unbroken, checkpoint_minutes=0)
    script = _CHILD.format(tests=str(CHECKOUT / "tests"), store=str(store), out=str(broken))
    chance = random.Random(int.from_bytes(os.urandom(4)))
    for target in sorted(chance.sample(range(LONGER.steps - 40), 4)):
        child = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
        while checkpoint_of(broken) < target:
            assert child.poll() is None
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))  # during a step or a checkpoint
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert files_of(broken) == files_of(unbroken)


_KILLED_WHILE_WRITING = """
import os, pathlib, signal, sys
import safetensors.torch
sys.path.insert(0, {tests!r})
from helpers import training_runs
save_file = safetensors.torch.save_file
def killed(tensors, path, metadata):
    if path.name.startswith({victim!r}):
        pathlib.Path(path.parent, ".tmpAbC123").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save_file(tensors, path, metadata)
safetensors.torch.save_file = killed
training_runs.train(training_runs.config(), out={out!r}, checkpoint_minutes=0)
"""


@pytest.mark.parametrize("victim", ["step-9.", "sae_weights."])
def test_partially_written_files_are_removed(victim: str, tmp_path: Path) -> None:
    train(config(), out=tmp_path / "unbroken")
    out = tmp_path / "broken"
    script = _KILLED_WHILE_WRITING.format(
        tests=str(CHECKOUT / "tests"), victim=victim, out=str(out)
    )
    child = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert child.returncode == -signal.SIGKILL
    assert list(out.rglob(".tmp*"))
    train(config(), out=out, resume=True)
    assert files_of(out) == files_of(tmp_path / "unbroken")


def test_ctrl_c_ends_training_after_a_whole_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config(seeds=(0, 1)), out=tmp_path / "whole")
    step = SeedTrainer.train

    def interrupted(trainer: SeedTrainer, number: int, batch: Any) -> None:
        if number == 12 and trainer.seed == 0:
            os.kill(os.getpid(), signal.SIGINT)
        step(trainer, number, batch)

    monkeypatch.setattr(SeedTrainer, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config(seeds=(0, 1)), out=tmp_path / "part")
    taken: list[int] = []

    def noted(trainer: SeedTrainer, number: int, batch: Any) -> None:
        taken.append(number)
        step(trainer, number, batch)

    monkeypatch.setattr(SeedTrainer, "train", noted)
    assert checkpoint_of(tmp_path / "part") == 13
    for _ in range(2):  # the second one finds it finished
        resumed = train(config(seeds=(0, 1)), out=tmp_path / "part", resume=True)
        for actual, expected in zip(resumed, whole, strict=True):
            assert_same_sae(actual, expected)
    assert taken == [number for number in range(13, 32) for _ in range(2)]


def test_a_finished_run_forgets_the_state_that_a_kill_has_left(tmp_path: Path) -> None:
    train(config(tokens=512), out=tmp_path)
    state = tmp_path / "seed-0/training"
    assert state.exists()
    train(config(tokens=512), out=tmp_path, resume=True, keep_training=False)
    assert not state.exists()


def test_the_handler_of_ctrl_c_is_restored() -> None:
    """A thread other than the main one must not change it."""

    def mine(*_: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGINT, mine)
    try:
        expected = train(config(tokens=512))[0]
        assert signal.getsignal(signal.SIGINT) is mine
        with ThreadPoolExecutor() as pool:
            found = pool.submit(train, config(tokens=512)).result()[0]
    finally:
        signal.signal(signal.SIGINT, before)
    assert_same_sae(found, expected)


def test_a_handler_of_a_program_that_embeds_python_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = train(config(tokens=512))[0]
    changed: list[signal.Signals] = []
    install = signal.signal

    def unknown(number: signal.Signals) -> Any:
        return None if number == signal.SIGINT else signal.SIG_DFL

    def noted(number: signal.Signals, handler: Any) -> Any:
        changed.append(number)
        before = install(number, handler)
        return None if number == signal.SIGINT else before

    monkeypatch.setattr(signal, "getsignal", unknown)
    monkeypatch.setattr(signal, "signal", noted)
    assert_same_sae(train(config(tokens=512))[0], expected)
    assert changed == [signal.SIGTERM] * 2


def test_a_run_can_be_resumed_before_its_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(SeedTrainer, "train", broken)
        with pytest.raises(RuntimeError, match="the power is gone"):
            train(config(), out=tmp_path)
    assert checkpoint_of(tmp_path) == 0
    with pytest.raises(FileExistsError, match="resume=True"):
        train(config(), out=tmp_path)
    with pytest.raises(ValueError, match=r"lr was 0\.002 and is now 0\.001"):
        train(config(lr=1e-3), out=tmp_path, resume=True)
    assert_same_sae(train(config(), out=tmp_path, resume=True)[0], train(config())[0])


def test_without_a_folder_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    train(config(tokens=512), checkpoint_minutes=0)
    step = SeedTrainer.train

    def interrupted(trainer: SeedTrainer, number: int, batch: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        step(trainer, number, batch)

    monkeypatch.setattr(SeedTrainer, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config())


def test_a_second_ctrl_c_is_immediate(monkeypatch: pytest.MonkeyPatch) -> None:
    after = []

    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        after.append("the first")
        os.kill(os.getpid(), signal.SIGINT)
        after.append("the second")

    monkeypatch.setattr(SeedTrainer, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config())
    assert after == ["the first"]


def test_checkpoints_are_written_every_few_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ten minutes and at the end; each replaces the previous one."""
    steps_take(60, monkeypatch)
    saved: list[int] = []
    save = RunFile.save

    def watched(run: RunFile, step: int, states: Any) -> None:
        save(run, step, states)
        saved.append(step)
        kept = [path.name for path in run.out.glob("seed-*/training/*")]
        assert kept == [f"step-{step}.safetensors"]

    monkeypatch.setattr(RunFile, "save", watched)
    train(config(), out=tmp_path)
    assert saved == [10, 20, 30, 32]
    assert (tmp_path / "seed-0/training/step-32.safetensors").exists()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_trained_stored_and_resumed(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(variant=variant, seeds=(0, 1), sparsity=1.0)
    whole = train(chosen, out=tmp_path / "whole")
    for seed, sae in zip((0, 1), whole, strict=True):
        assert_same_sae(load_sae(tmp_path / f"whole/seed-{seed}"), sae)
    step = SeedTrainer.train

    def broken(trainer: SeedTrainer, number: int, batch: Any) -> None:
        if number == 17:
            raise RuntimeError("the power is gone")
        step(trainer, number, batch)

    monkeypatch.setattr(SeedTrainer, "train", broken)
    with pytest.raises(RuntimeError, match="the power is gone"):
        train(chosen, out=tmp_path / "part", checkpoint_minutes=0)
    monkeypatch.undo()
    assert checkpoint_of(tmp_path / "part") == 17
    for actual, expected in zip(
        train(chosen, out=tmp_path / "part", resume=True), whole, strict=True
    ):
        assert_same_sae(actual, expected)
    first, last = metrics_of(tmp_path / "whole")[0], metrics_of(tmp_path / "whole")[-1]
    assert last["fvu"] < first["fvu"]
    # SAEs trained on scaled rows take unscaled rows.
    untrained = train(config(variant=variant, lr=0.0, k_start=None))[0]
    error = ((whole[0](ROWS) - ROWS) ** 2).sum()
    assert error < 0.9 * ((untrained(ROWS) - ROWS) ** 2).sum()


def refused() -> dict[str, tuple[dict[str, Any], str]]:
    """Return changes to a resumed run, and the error messages."""
    return {
        "lr": ({"configuration": config(lr=1e-3)}, "lr was 0.002 and is now 0.001"),
        "rules": (
            {"configuration": config(rules=Rules(clip=2.0))},
            "rules.clip was 1.0 and is now 2.0",
        ),
        "data": ({"rows": ROWS + 1}, "data.fingerprint was"),
    }


@pytest.mark.parametrize("name", refused())
def test_a_changed_run_is_not_resumed(name: str, tmp_path: Path) -> None:
    train(config(), out=tmp_path)
    changes, complaint = refused()[name]
    with pytest.raises(ValueError, match=complaint):
        train(changes.pop("configuration", config()), out=tmp_path, resume=True, **changes)


def test_a_run_is_resumed_only_with_its_initial_saes(tmp_path: Path) -> None:
    given, other = train(config(seeds=(4, 5), tokens=1000))
    short = config(tokens=2000)
    whole = train(short, initial=given, out=tmp_path / "whole")[0]
    facts = json.loads((tmp_path / "whole/run.json").read_text())
    assert facts["initial"][0].startswith("sha256:")
    for initial in (other, None):
        with pytest.raises(ValueError, match=r"cannot be resumed, since initial\[0\] was 'sha256"):
            train(short, initial=initial, out=tmp_path / "whole", resume=True)
    step = SeedTrainer.train

    def broken(trainer: SeedTrainer, number: int, batch: Any) -> None:
        if number == 9:
            raise RuntimeError("the power is gone")
        step(trainer, number, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeedTrainer, "train", broken)
        with pytest.raises(RuntimeError, match="the power is gone"):
            train(short, initial=given, out=tmp_path / "part", checkpoint_minutes=0)
    resumed = train(short, initial=given, out=tmp_path / "part", resume=True)[0]
    assert_same_sae(resumed, whole)
    train(short, out=tmp_path / "drawn")
    with pytest.raises(ValueError, match=r"initial\[0\] was None"):
        train(short, initial=given, out=tmp_path / "drawn", resume=True)


def test_differences_are_named_with_their_place() -> None:
    then = {"a": [1, {"b": 2}], "c": [1, 2], "d": [1], "e": None, "f": 3}
    now = {"a": [1, {"b": 4}], "c": [1], "d": None, "e": [1], "g": 5}
    assert differences(then, now) == [
        "a[1].b was 2 and is now 4",
        "c was [1, 2] and is now [1]",
        "d was [1] and is now None",
        "e was None and is now [1]",
        "f was 3 and is now None",
        "g was None and is now 5",
    ]
    assert differences(now, now) == []


def test_a_run_killed_after_its_last_step_needs_no_more_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, whole = config(tokens=640), tmp_path / "whole"
    train(plan, rows=iter(ROWS[:640].split(100)), out=whole)

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(TrainedRun, "_save", killed)
        with pytest.raises(SystemExit):
            train(plan, rows=iter(ROWS[:640].split(100)), out=tmp_path / "killed")
    train(plan, rows=iter(ROWS[:640].split(100)), out=tmp_path / "killed", resume=True)
    assert files_of(tmp_path / "killed") == files_of(whole)


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(config(tokens=128), out=tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        train(config(tokens=128), out=tmp_path)


@pytest.mark.parametrize("victim", ["step-9.safetensors", "run.json"])
def test_a_full_disk_leaves_the_last_checkpoint(
    victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config(), out=tmp_path / "whole")[0]
    state = tmp_path / "run/seed-0/training/step-9.safetensors"
    written = atomic._replace

    def full(path: Path, part: Path, write: Callable[[Path], object]) -> None:
        def fail(part: Path) -> None:
            write(part)
            part.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        now = path.name == victim and (path == state or state.exists())
        written(path, part, fail if now else write)

    monkeypatch.setattr(atomic, "_replace", full)
    with pytest.raises(OSError, match=r"checkpoint of step 9 .*No space.*step 8 is intact"):
        train(config(), out=tmp_path / "run", checkpoint_minutes=0)
    monkeypatch.undo()
    assert not list((tmp_path / "run").rglob("*.part"))
    assert json.loads((tmp_path / "run/run.json").read_text())["checkpoint"] == 8
    assert_same_sae(train(config(), out=tmp_path / "run", resume=True)[0], whole)
