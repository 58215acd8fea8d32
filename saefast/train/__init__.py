"""Train SAEs: many seeds in one pass over the activations, or one step at a time."""

from saefast.train.config import TrainConfig
from saefast.train.settings import AuxK, Penalty, Rules
from saefast.train.step import FusedStep
from saefast.train.train import train_saes

__all__ = [
    "AuxK",
    "FusedStep",
    "Penalty",
    "Rules",
    "TrainConfig",
    "train_saes",
]
