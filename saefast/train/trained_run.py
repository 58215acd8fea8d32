"""One run of a training: SAEs, reports, checkpoints and results."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saefast.ops.cuda_streams import Streams
from saefast.sae import SAE
from saefast.storage import save_into
from saefast.train.checkpoint import RunFile
from saefast.train.checkpoint_writer import CheckpointWriter
from saefast.train.config import TrainConfig
from saefast.train.initial import Scales, folded
from saefast.train.loggers import Logger
from saefast.train.seed_trainer import SeedTrainer


class Member(NamedTuple):
    """Run that is trained with others on one stream."""

    configs: Sequence[TrainConfig]
    """configs of the run"""
    run: RunFile | None
    """file of the run; None: nothing is written"""
    initial: Sequence[SAE | None]
    """initial SAE for each SAE of the run; None: drawn from its seed"""
    log: Sequence[Logger]
    """loggers of the run"""

    @property
    def saes(self) -> list[tuple[TrainConfig, int, SAE | None]]:
        """Config, seed and initial SAE of each SAE."""
        each = [(config, seed) for config in self.configs for seed in config.seeds]
        return [(*one, start) for one, start in zip(each, self.initial, strict=True)]


class TrainedRun:
    """SAEs of one run, and its folder if it has one.

    Args:
        member: the run.
        trainers: trainers of the SAEs, in the order of configs and seeds; the state of the
            checkpoint is loaded into them.
        streams: streams of the device; None: a CPU.
        step: number of steps taken.
        scales: scales of the activations.
    """

    def __init__(
        self,
        member: Member,
        trainers: Sequence[SeedTrainer],
        streams: Streams | None,
        step: int,
        scales: Scales,
    ) -> None:
        self.trainers = trainers
        self._log, self._scales = member.log, scales
        run = self._run = member.run
        self._checkpoints = None if run is None else CheckpointWriter(run, streams)
        if run is not None and step > 0:
            for trainer in trainers:
                trainer.load_state_dict(run.load(trainer.label))
        elif run is not None:
            run.facts["scales"] = list(scales)
            run.write()

    def writing(self) -> contextlib.AbstractContextManager[object]:
        """Return a context that ends once no checkpoint is being written."""
        return self._checkpoints or contextlib.nullcontext()

    def check(self) -> None:
        """Raise the error of a failed checkpoint."""
        if self._checkpoints is not None:
            self._checkpoints.check()

    def wait(self) -> None:
        """Wait until the current checkpoint is written."""
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def report(
        self, number: int, position: Mapping[str, Any], timing: Mapping[str, Any]
    ) -> Sequence[Mapping[str, Any]]:
        """Log the measures of every SAE since the last report, and return them."""
        reports = [trainer.report(number, self._scales) for trainer in self.trainers]
        for trainer, report in zip(self.trainers, reports, strict=True):
            for logger in self._log:
                logger.write(trainer.label, number + 1, {**position, **report, **timing})
        return reports

    def checkpoint(self, step: int) -> None:
        """Write a checkpoint if the run has a folder; see `CheckpointWriter`."""
        if self._checkpoints is not None:
            self._checkpoints.save(step, {t.label: t.state_dict() for t in self.trainers})

    def finish(self, step: int, keep_training: bool) -> None:
        """Write the last checkpoint and the trained SAEs if the run has a folder."""
        if self._run is None or self._checkpoints is None:
            return
        with self._checkpoints:
            self.checkpoint(step)
        for trainer, sae in zip(self.trainers, self.results(), strict=True):
            save_into(self._run.out / trainer.label, sae)
        self._run.facts["finished"] = True
        self._run.write()
        if not keep_training:
            self._run.forget([trainer.label for trainer in self.trainers])

    def results(self) -> list[SAE]:
        """Return copies of the SAEs in their current state, for unscaled activations."""
        saes = []
        for trainer in self.trainers:
            sae = folded(trainer.step.sae, self._scales)
            sae.firing_rate = trainer.firing_rate.to(sae.W_dec.dtype)
            saes.append(sae)
        return saes
