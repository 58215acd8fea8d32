"""Trainings by several processes of torchrun, of which the first runs the stages."""

import contextlib
from collections.abc import Iterator

from saefast.pipeline.job import Job
from saefast.pipeline.settings import StoreSettings
from saefast.pipeline.stages.train import train
from saefast.train.ranks import Ranks
from saefast.train.ranks.words import said

_TRAIN, _END = "train", "end"


def check_ranks(ranks: Ranks, job: Job, wanted: set[str]) -> None:
    """Raise a ValueError if stages are wanted that several processes cannot divide."""
    if ranks.size > 1 and (
        not wanted <= {"harvest", "train"} or not isinstance(job.settings.data, StoreSettings)
    ):
        raise ValueError(
            "torchrun starts trainings on a store of activations alone: harvest first, start "
            "`saefast train` by torchrun, and the other stages by one process"
        )


def follow(ranks: Ranks, job: Job) -> None:
    """Take part in the trainings of rank 0 until it ends."""
    while said(ranks, "")[0] == _TRAIN:
        train(job)


def begin_training(ranks: Ranks) -> None:
    """Let the other ranks take part in the training that rank 0 is about to begin."""
    said(ranks, _TRAIN)


@contextlib.contextmanager
def leading(ranks: Ranks) -> Iterator[None]:
    """End the other ranks when rank 0 has ended the stages, or tell them why it failed."""
    try:
        yield
    except BaseException as error:
        ranks.fail(error)
        raise
    said(ranks, _END)
