"""Stage train: training of the SAEs of all seeds."""

from collections.abc import Sequence

from saefast.pipeline.job import Job
from saefast.storage import load_sae
from saefast.train.initial import check_fits
from saefast.train.loggers import check_installed
from saefast.train.train import Training, device_of, train_runs


def train(job: Job) -> None:
    """Train the SAEs, unless the run began with trained ones."""
    if job.knows_rows:
        train_jobs([job], job.progress)


def check_training(job: Job) -> None:
    """Raise an error if device, loggers or initial SAEs of a run do not permit its training."""
    how = job.settings.trainer
    device_of(how.device)
    check_installed(how.log_to)
    for path in how.initial:
        check_fits(job.settings.train, load_sae(path))


def train_jobs(jobs: Sequence[Job], progress: bool) -> None:
    """Train the SAEs of runs whose rows and `trainer` settings agree, in one pass over the rows."""
    first = jobs[0]
    how = first.settings.trainer
    train_runs(
        str(first.train_rows),
        [Training((job.settings.train,), job.run, job.initial) for job in jobs],
        resume=True,
        progress=progress,
        device=how.device,
        checkpoint_minutes=how.checkpoint_minutes,
        log_every=how.log_every,
        log_to=how.log_to,
        keep_training=how.keep_training,
    )
