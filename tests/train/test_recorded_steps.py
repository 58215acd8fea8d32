"""Steps are recorded where possible, and replays give the same training."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.training_runs import ROWS, assert_same_sae, config, metrics_of, train
from torch import Tensor

from saefast import SAE, FusedStep
from saefast.activations import TensorActivations
from saefast.train import recorded_steps
from saefast.train.captured_step import CapturedStep, Phases, RecordingFailed
from saefast.train.recorded_steps import WARM_UP, Graphs
from saefast.train.seed_trainer import SeedTrainer
from saefast.train.step_result import StepResult


class Recorder:
    """A stand-in for CUDA graphs that records nothing, and replays by taking the step.

    As in a shared memory pool, a replay overwrites the results of all graphs, including its own.
    """

    def __init__(self, patch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.recorded: list[tuple[FusedStep, int, int]] = []
        """the step, how many were taken before, and its number of active latents"""
        self.makers: list[Any] = []
        """maker of the graphs"""
        self.replays = 0
        self._results: list[StepResult] = []
        self._error = error
        patch.setattr(recorded_steps, "gpu", SimpleNamespace(has=lambda _: True))
        patch.setattr(torch.cuda, "graph_pool_handle", object)
        patch.setattr(FusedStep, "capture", self._capture_by())

    def _capture_by(self) -> Callable[..., Any]:
        def capture(
            step: FusedStep, x: Tensor, target: Tensor | None = None, *, graph: Any = None
        ) -> Callable[..., StepResult]:
            self.recorded.append((step, step.steps, step.now.k))
            self.makers.append(graph)
            if isinstance(self._error, RecordingFailed):  # known from the first step
                return mock.Mock(side_effect=self._error)
            if self._error is not None:
                raise self._error
            return lambda x, target: self._replay(step, x, target)

        return capture

    def _replay(self, step: FusedStep, x: Tensor, target: Tensor | None) -> StepResult:
        for result in self._results:
            for tensor in (result.loss, result.squares, result.fired, result.auxk):
                if tensor is not None:
                    tensor.fill_(-1)
        self.replays += 1
        self._results.append(step(x, target))
        return self._results[-1]


SEEDS = config(seeds=(0, 3), tokens=128 * 40, k_anneal=0.25)  # k is final at step 10


def trained(configuration: Any, out: Any, **settings: Any) -> tuple[list[SAE], list[Any]]:
    saes = train(configuration, out=out, **settings)
    lines = metrics_of(out)
    for line in lines:
        for name in ("seconds", "tokens_per_second", "input_wait", "path"):
            del line[name]
    return saes, lines


def assert_same_training(ours: tuple[list[SAE], Any], theirs: tuple[list[SAE], Any]) -> None:
    for actual, expected in zip(ours[0], theirs[0], strict=True):
        assert_same_sae(actual, expected)
    assert ours[1] == theirs[1]


def test_replayed_steps_give_the_same_training(tmp_path, monkeypatch) -> None:
    plain = trained(SEEDS, tmp_path / "plain")
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        replayed = trained(SEEDS, tmp_path / "replayed")
    assert_same_training(replayed, plain)
    assert [(taken, k) for _, taken, k in recorder.recorded] == [(10 + WARM_UP, 4)] * 2
    assert recorder.replays == 2 * (40 - 10 - WARM_UP)
    assert len(set(recorder.makers)) == 1
    paths = [line["path"] for line in metrics_of(tmp_path / "replayed") if line["seed"] == 3]
    assert paths == ["fused"] + ["captured"] * 5


def test_a_resumed_training_is_recorded_again(tmp_path, monkeypatch) -> None:
    plain = train(SEEDS)
    recorder = Recorder(monkeypatch)
    taken = SeedTrainer.train

    def broken(trainer: SeedTrainer, number: int, batch: Any) -> None:
        if number == 20:
            raise RuntimeError("the power is gone")
        taken(trainer, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SeedTrainer, "train", broken)
        with pytest.raises(RuntimeError, match="the power is gone"):
            train(SEEDS, out=tmp_path, checkpoint_minutes=0)
    resumed = train(SEEDS, out=tmp_path, resume=True)
    for actual, expected in zip(resumed, plain, strict=True):
        assert_same_sae(actual, expected)
    assert [step for _, step, _ in recorder.recorded] == [10 + WARM_UP] * 2 + [20 + WARM_UP] * 2


def test_targets_reach_the_recorded_step(tmp_path, monkeypatch) -> None:
    pairs = TensorActivations(ROWS, ROWS.flip(1) * 2)
    plain = trained(SEEDS, tmp_path / "plain", rows=pairs)
    recorder = Recorder(monkeypatch)
    assert_same_training(trained(SEEDS, tmp_path / "replayed", rows=pairs), plain)
    assert recorder.replays > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"k_anneal": 1.0},
        {"variant": "gated"},
        {"loss": lambda sae, x, target: (sae(x) - target).square().sum(1).mean()},
        {"tokens": 128 * WARM_UP, "k_start": None},
    ],
)
def test_steps_that_cannot_be_recorded_are_not_tried(changes, monkeypatch) -> None:
    recorder = Recorder(monkeypatch)
    train(config(**changes))
    assert recorder.recorded == []


@pytest.mark.parametrize(
    "error",
    [
        RecordingFailed("the step could not be recorded: CUDA out of memory"),
        ValueError("capture needs something else"),
    ],
)
def test_a_failed_recording_does_not_change_steps(error, tmp_path, monkeypatch) -> None:
    plain = trained(SEEDS, tmp_path / "plain")
    recorder = Recorder(monkeypatch, error)
    with pytest.warns(RuntimeWarning, match=f"without a CUDA graph.*{error}") as warned:
        assert_same_training(trained(SEEDS, tmp_path / "eager"), plain)
    assert len(warned) == 1
    assert len(recorder.recorded) == 2
    assert {line["path"] for line in metrics_of(tmp_path / "eager")} == {"fused"}


def test_other_errors_of_a_recording_are_raised(monkeypatch) -> None:
    Recorder(monkeypatch, KeyError("a defect"))
    with pytest.raises(KeyError, match="a defect"):
        train(SEEDS)


def test_on_the_cpu_nothing_is_recorded(monkeypatch) -> None:
    recorder = Recorder(monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(FusedStep, "capture", recorder._capture_by())
    train(SEEDS)
    assert recorder.recorded == []


def test_graphs_of_one_run_share_a_pool(monkeypatch) -> None:
    made = mock.Mock()
    monkeypatch.setattr(recorded_steps, "CudaGraph", made)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    one, other = Graphs(), Graphs()
    for graphs in (one, one, other):
        graphs.graph(None)
    (_, first), (_, second), (_, third) = (call.args for call in made.call_args_list)
    assert first is second is not third


def test_a_step_that_cannot_be_recorded_raises_before_it_is_computed() -> None:
    computed: list[int] = []

    class Full:
        def record(self, phase: Callable[[], Any]) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    phases = Phases(
        lambda: 1, lambda: None, computed.append, bool, computed.append, computed.append
    )
    captured = CapturedStep(phases, ROWS[:3], None, lambda _: Full())
    with pytest.raises(RecordingFailed, match="could not be recorded: CUDA out of memory"):
        captured(ROWS[:3])
    assert not computed
