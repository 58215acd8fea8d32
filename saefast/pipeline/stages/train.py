"""Stage train: training of the SAEs of all seeds."""

from saefast.pipeline.job import Job
from saefast.train.train import train_saes


def train(job: Job) -> None:
    """Train the SAEs, unless the run began with trained ones."""
    if not job.knows_rows:
        return  # the run began with trained SAEs
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
