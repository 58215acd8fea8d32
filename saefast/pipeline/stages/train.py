"""Stage train: training of the SAEs of all seeds."""

from collections.abc import Sequence

from saefast.pipeline.job import Job
from saefast.train.train import Training, train_runs


def train(job: Job) -> None:
    """Train the SAEs, unless the run began with trained ones."""
    if job.knows_rows:
        train_jobs([job], job.progress)


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
