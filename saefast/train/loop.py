"""Training loop of a run: one stream of batches, all SAEs, reports and checkpoints."""

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Sequence
from statistics import fmean
from types import FrameType
from typing import Any, Self

import torch

from saefast.activations import Activations, Prefetcher
from saefast.activations.shuffled import Shuffled
from saefast.activations.transfer import (
    DeviceTransfer,
    HostTransfer,
    TrainingRows,
    Transfer,
    check_finite,
    extremes,
)
from saefast.linalg import one_thread
from saefast.ops.cuda_streams import streams_of
from saefast.ops.latent_sum import column_sum
from saefast.progress import ProgressBar
from saefast.sae import SAE
from saefast.train.initial import ROWS, Sample, Scales, begin, scales_of
from saefast.train.ranks.division import Division
from saefast.train.ranks.group import ALONE, Ranks
from saefast.train.ranks.rows import read_once
from saefast.train.ranks.words import any_of
from saefast.train.recorded_steps import Graphs
from saefast.train.seed_trainer import Prepared, SeedTrainer
from saefast.train.trained_run import Member, TrainedRun

_AHEAD = 4
"""Number of batches that are read and transferred to the device ahead of the training."""

_WORTH_THREADS = 2e8
"""Minimum number of multiplications and additions of a batch's encode for which torch uses several
threads: with fewer, synchronisation costs more than it saves (measured: half of the time of a step
of 5e7)."""


class TrainingLoop:
    """State of one or several runs: all SAEs, at one step of one stream, until it is closed.

    Args:
        members: runs whose configs share a stream and whose checkpoints are of one step.
        source: activations.
        device: device to train on.
        ranks: ranks that train together, each with a loop of its own on the same stream.
    """

    def __init__(
        self,
        members: Sequence[Member],
        source: Activations,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self._source, self._device = source, device
        self._streams = streams_of(device)
        self._first = members[0].configs[0]
        run = members[0].run
        self.step = 0 if run is None else run.step
        self._transfer: Transfer[Any]
        into: dict[str, Any] = {}
        if self._streams is None:
            self._transfer = HostTransfer(device, source.locate)
        else:
            self._transfer = ring = DeviceTransfer(self._streams, source.locate, _AHEAD)
            into = {"memory": ring.memory} if isinstance(source, Shuffled) else {}
        # A resume after the last step reads that step's rows again: there may be none after them.
        start = min(self.step, self._first.steps - 1)
        batches = source.batches(
            self._first.batch_size, seed=self._first.data_seed, start=start, **into
        )
        self._ranks = ranks
        with contextlib.ExitStack() as opened:
            self._stream, self._ahead = opened.enter_context(read_once(ranks, batches, _AHEAD))
            self._begin(members)
            self._opened = opened.pop_all()

    def _begin(self, members: Sequence[Member]) -> None:
        """Make the trainers of all SAEs, as they are before the next step."""
        run = members[0].run
        sample = self._look_ahead()
        if run is not None and self.step > 0:
            self.scales = Scales(*run.facts["scales"])
        else:
            self.scales = scales_of(sample, self._first.activation_scaling)
        graphs = Graphs()
        division = Division(self._ranks, sum(len(member.saes) for member in members))
        self._runs = []
        first = 0
        for member in members:
            trainers: list[SeedTrainer | None] = []
            for number, (config, seed, its) in enumerate(member.saes, first):
                if not division.trains(number):
                    trainers.append(None)
                    continue
                share = division.share_of(config.latents, sample.width)
                sae = begin(config, seed, sample, self.scales, its, share)
                trainers.append(SeedTrainer(config, seed, sae, self._device, graphs, share))
            self._runs.append(
                TrainedRun(member, trainers, division, first, self._streams, self.step, self.scales)
            )
            first += len(trainers)
        self._trainers = [trainer for each in self._runs for trainer in each.trainers]

    def close(self) -> None:
        """Stop reading; the loop cannot train any further."""
        self._opened.close()

    def _look_ahead(self) -> Sample:
        """Return the first rows of the stream without consuming them."""
        count = -(-ROWS // self._first.batch_size)
        left = max(1, self._first.steps - self.step)
        ahead = list(itertools.islice(self._stream, min(count, left)))
        self._stream = itertools.chain(ahead, self._stream)
        xs, targets = [], []
        for batch in ahead:
            # On the CPU, where SAEs are initialised, regardless of the device of the rows.
            columns = [rows.float().cpu() for rows in (batch.x, batch.target) if rows is not None]
            check_finite(map(extremes, columns), batch.rows, self._source.locate)
            xs.append(columns[0])
            targets += columns[1:]
        return Sample(torch.cat(xs)[:ROWS], torch.cat(targets)[:ROWS] if targets else None)

    def train(self, log_every: int, checkpoint_minutes: float, progress: bool) -> None:
        """Take all remaining steps."""
        steps, size = self._first.steps, self._first.batch_size
        bar = ProgressBar(
            f"training {len(self._trainers)} SAE{'s' * (len(self._trainers) > 1)}",
            total=steps * size,
            unit="rows",
            progress=progress,
            done=self.step * size,
        )
        saved = time.monotonic()
        clock = _Clock(self.step * size)
        transfer = self._transfer
        batches: Prefetcher[Any]
        with (
            self._threads(),
            bar,
            contextlib.ExitStack() as writers,
            Prefetcher(transfer.ahead(self._stream, self.scales), self._ahead) as batches,
            _Interrupts() as interrupts,
        ):
            for each in self._runs:
                writers.enter_context(each.writing())
            for number in range(self.step, steps):
                try:
                    batch = self._with_variance(transfer.take(next(batches)))
                except ValueError as error:
                    raise ValueError(f"step {number} failed: {error}") from error
                for trainer in self._trainers:
                    trainer.train(number, batch)
                self.step = number + 1
                bar.update(size)
                if self.step % log_every == 0 or self.step == steps:
                    timing = clock.lap(batches.wait_seconds, self.step * size)
                    self._report(number, timing, bar)
                for each in self._runs:
                    each.check()
                due = time.monotonic() - saved >= 60 * checkpoint_minutes
                stop, due = any_of(self._ranks, interrupts.came, due)
                if stop or due:
                    self.checkpoint()
                    saved = time.monotonic()
                if stop:
                    for each in self._runs:
                        each.wait()
                    raise KeyboardInterrupt

    def _threads(self) -> contextlib.AbstractContextManager[None]:
        """Limit torch to one thread if batches are small; the results have the same bits."""
        latents = max(trainer.config.latents for trainer in self._trainers)
        work = 2.0 * self._first.batch_size * latents * self._source.d
        return one_thread() if work < _WORTH_THREADS else contextlib.nullcontext()

    def _report(self, number: int, timing: dict[str, float], bar: ProgressBar) -> None:
        tokens = self.step * self._first.batch_size
        reports = [
            report
            for each in self._runs
            for report in each.report(number, {"tokens": tokens}, timing)
        ]
        loss, explained, active, dead = (
            fmean(float(report[name]) for report in reports)
            for name in ("loss", "explained_variance", "l0", "dead_share")
        )
        mean = "mean " if len(reports) > 1 else ""
        bar.status(f"{mean}loss {loss:.4g} EV {explained:.3f} L0 {active:.1f} dead {dead:.1%}")

    def checkpoint(self) -> None:
        """Write a checkpoint of each run that has a folder; see `CheckpointWriter`."""
        for each in self._runs:
            each.checkpoint(self.step)

    def finish(self, keep_training: bool) -> None:
        """Write the last checkpoint and the trained SAEs of each run that has a folder."""
        for each in self._runs:
            each.finish(self.step, keep_training)

    def results(self) -> list[Sequence[SAE]]:
        """Return copies of the SAEs of each run as they are now, for unscaled activations."""
        return [each.results() for each in self._runs]

    def _with_variance(self, batch: TrainingRows) -> Prepared:
        rows = batch.x if batch.target is None else batch.target
        mean = column_sum(rows) / len(rows)
        squares = column_sum((rows - mean).square()).double().sum()
        return Prepared(batch.x, batch.target, squares, batch.where)


class _Clock:
    """Measures speed and waiting time between two reports."""

    def __init__(self, tokens: int) -> None:
        self._time, self._waited, self._tokens = time.perf_counter(), 0.0, tokens

    def lap(self, waited: float, tokens: int) -> dict[str, float]:
        """Return the timing since the last call; `waited` and `tokens` are totals of the run."""
        now = time.perf_counter()
        seconds = now - self._time
        timing = {
            "seconds": seconds,
            "tokens_per_second": (tokens - self._tokens) / seconds,
            "input_wait": (waited - self._waited) / seconds,
        }
        self._time, self._waited, self._tokens = now, waited, tokens
        return timing


class _Interrupts:
    """Defers Ctrl-C and SIGTERM to the end of a step, since SAEs are inconsistent during one.

    A second Ctrl-C is not deferred; a second SIGTERM is, as schedulers and torchrun may both send
    one. Outside of the main thread, and for handlers of a program that embeds Python, nothing is
    changed.
    """

    _signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            # A handler that was not installed by Python could not be restored.
            known = [each for each in self._signals if signal.getsignal(each) is not None]
            self._before = {each: signal.signal(each, self._notice) for each in known}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self.came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.came = True
