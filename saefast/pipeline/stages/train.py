"""Stage train: the SAEs."""

from saefast.pipeline.job import Job
from saefast.train.train import train_saes


def train(job: Job) -> None:
    """The SAEs."""
    if not job.knows_rows:
        return  # they are what the run began with
    how = job.settings.trainer
    train_saes(
        str(job.train_rows),
        job.settings.train,
        initial=job.initial,
        out=job.run,
        resume=True,
        progress=job.progress,
        device=how.device,
        checkpoint_minutes=how.checkpoint_minutes,
        log_every=how.log_every,
        log_to=how.log_to,
        keep_training=how.keep_training,
    )
