"""One run of a training: SAEs, reports, checkpoints and results."""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from saefast.ops.cuda_streams import Streams
from saefast.sae import SAE
from saefast.storage import save_into
from saefast.train.checkpoint import RunFile
from saefast.train.checkpoint_writer import CheckpointWriter
from saefast.train.config import TrainConfig
from saefast.train.finite_state import NO_RESULT, check_moments, check_weights
from saefast.train.initial import Scales, folded
from saefast.train.loggers import Logger
from saefast.train.ranks.division import Division, returns_files
from saefast.train.ranks.finished import save_together
from saefast.train.ranks.words import wait_for_all
from saefast.train.seed_trainer import SeedTrainer
from saefast.train.stored_saes import StoredSAEs


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
        trainers: trainers of the SAEs, in the order of configs and seeds, None for those of other
            ranks; the state of the checkpoint is loaded into them.
        division: division of all SAEs that are trained among ranks.
        first: number of the run's first SAE among them.
        streams: streams of the device; None: a CPU.
        step: number of steps taken.
        scales: scales of the activations.
    """

    def __init__(
        self,
        member: Member,
        trainers: Sequence[SeedTrainer | None],
        division: Division,
        first: int,
        streams: Streams | None,
        step: int,
        scales: Scales,
    ) -> None:
        self.trainers = [trainer for trainer in trainers if trainer is not None]
        self._division = division
        self._all = [
            (number, config, start, trainer)
            for number, ((config, _, start), trainer) in enumerate(
                zip(member.saes, trainers, strict=True), first
            )
        ]
        self._log, self._scales = member.log, scales
        run = self._run = member.run
        self._checkpoints = None if run is None else CheckpointWriter(run, streams)
        if run is None:
            return
        for trainer in self.trainers:
            if trainer.step.share is not None:
                run.shares[trainer.label] = trainer.step.share
        if step > 0:
            for trainer in self.trainers:
                trainer.load_state_dict(run.load(trainer.label, trainer.state_dict()))
        else:
            run.facts["scales"] = list(scales)
            if division.ranks.rank == 0:
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
        own = [
            {"label": trainer.label, **trainer.report(number, self._scales)}
            for trainer in self.trainers
        ]
        reports = self._division.of_all(own, [number for number, *_ in self._all])
        labelled = [(str(report.pop("label")), report) for report in reports]
        for label, report in labelled:
            for logger in self._log:
                logger.write(label, number + 1, {**position, **report, **timing})
        return reports

    def checkpoint(self, step: int) -> None:
        """Write a checkpoint if the run has a folder; see `CheckpointWriter`.

        Raises:
            ValueError: a weight or a moment is NaN or infinite; nothing is written.
        """
        if self._run is None or self._checkpoints is None:
            return
        for logger in self._log:
            logger.flush()
        self._checkpoints.wait()
        before = f" and that of step {self._run.step} is intact" if self._run.step else ""
        consequence = f"the checkpoint of step {step} is not written{before}"
        for trainer in self.trainers:
            check_weights(trainer.label, trainer.step.sae.state_dict(), consequence)
        self._check_moments(consequence)
        self._checkpoints.save(step, {t.label: t.state_dict() for t in self.trainers})

    def finish(self, step: int, keep_training: bool) -> None:
        """Write the last checkpoint and the trained SAEs if the run has a folder."""
        if self._run is None or self._checkpoints is None:
            return
        with self._checkpoints:
            self.checkpoint(step)
        for trainer in self.trainers:
            self._save(trainer, self._run.out / trainer.label)
        ranks = self._division.ranks
        wait_for_all(ranks)
        self._run.facts["finished"] = True
        if ranks.rank == 0:
            self._run.write()
        wait_for_all(ranks)
        if not keep_training:
            self._run.forget([each.label for each in self.trainers if self._writes(each)])

    def _save(self, trainer: SeedTrainer, folder: Path) -> None:
        """Write the files of an SAE, with all ranks if they train it together."""
        step = trainer.step
        if step.share is None:
            save_into(folder, self._result(trainer))
        elif not step.sae.by_norm:
            rate = trainer.firing_rate.to(step.sae.W_dec.dtype)
            save_together(folder, step.sae, step.share, self._scales, rate)
        else:  # the format has decoder rows of norm one, whose norms need the whole
            sae = self._result(trainer)
            if self._writes(trainer):
                save_into(folder, sae)

    def _writes(self, trainer: SeedTrainer) -> bool:
        """Return whether this rank writes the SAE of one of its trainers."""
        return trainer.step.share is None or self._division.ranks.rank == 0

    def results(self) -> Sequence[SAE]:
        """Return copies of the SAEs in their current state, for unscaled activations.

        They are on all ranks. With several ranks, those of a run with a folder are its files.
        """
        if self._run is not None and returns_files(self._division.ranks):
            return StoredSAEs(self._run.out / label for label in self._run.labels)
        if self._run is None:  # else a checkpoint was written
            self._check_moments(NO_RESULT)
        some = self.trainers[0].step.sae
        saes = []
        for number, config, start, trainer in self._all:
            sae = _empty(config, some, start) if trainer is None else self._result(trainer)
            assert sae.firing_rate is not None
            self._division.copy_to_all(number, [*sae.state_dict().values(), sae.firing_rate])
            saes.append(sae)
        return saes

    def _result(self, trainer: SeedTrainer) -> SAE:
        """Return the SAE for unscaled activations; ValueError if a weight is NaN or infinite."""
        sae = folded(trainer.whole_sae(), self._scales)
        sae.firing_rate = trainer.firing_rate.to(sae.W_dec.dtype)
        check_weights(trainer.label, sae.state_dict(), NO_RESULT)
        return sae

    def _check_moments(self, consequence: str) -> None:
        for trainer in self.trainers:
            check_moments(trainer.label, trainer.step.adam.moments, consequence)


def _empty(config: TrainConfig, like: SAE, start: SAE | None) -> SAE:
    """Return an SAE for the weights of another rank, which began with `start` or from its seed.

    `like` is an SAE trained on the same rows.
    """
    sae = SAE(
        like.d,
        config.latents,
        variant=config.variant,
        k=config.k,
        d_out=like.d_out if like.transcodes else None,
        centred=None if start is None else start.centred,
        by_norm=config.by_norm,
    )
    sae.metadata = {} if start is None else copy.deepcopy(start.metadata)
    sae.firing_rate = torch.zeros(config.latents, dtype=torch.float32, device="cpu")
    return sae
