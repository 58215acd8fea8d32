"""Training of one SAE: its step, schedules and reports."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.sae import SAE
from saefast.train.config import TrainConfig
from saefast.train.initial import Scales
from saefast.train.meter import Meter
from saefast.train.objectives import Current, objective_of
from saefast.train.ranks.group import ALONE
from saefast.train.ranks.share import Share, gathered
from saefast.train.recorded_steps import Graphs, RecordedSteps
from saefast.train.settings import AuxK
from saefast.train.step import FusedStep


class Prepared(NamedTuple):
    """A scaled batch on the device, shared by all SAEs."""

    x: Tensor
    """[n, d] activations"""
    target: Tensor | None
    """[n, d_out] rows to reconstruct; None: x"""
    variance: Tensor
    """[] float64, sum of squared distances to the mean row of the reconstructed rows"""
    where: str
    """location of the rows in the source, for error messages"""


class SeedTrainer:
    """One SAE in training, or this rank's share of one."""

    def __init__(
        self,
        config: TrainConfig,
        seed: int,
        sae: SAE,
        device: torch.device,
        graphs: Graphs,
        share: Share | None = None,
    ) -> None:
        self.config, self.label, self.seed = config, config.label(seed), seed
        sae = sae.to(device)
        self.path = ""
        self.step = FusedStep(
            sae,
            rules=config.rules,
            objective=objective_of(config, sae),
            precision=config.precision,
            auxk=config.auxk,
            ranks=ALONE if share is None else share.ranks,
            share=share,
        )
        self._steps = RecordedSteps(self.step, graphs)
        self.meter = Meter(device)
        # Number of rows in the last tenth of the run on which each latent fired.
        self.fired = torch.zeros(config.latents, dtype=torch.int64, device=device)
        self._tail = max(1, config.steps // 10)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state needed for a resume, without copying the tensors."""
        return {**self.step.state_dict(), "meter": self.meter.sums, "fired": self.fired}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore a state returned by `state_dict`."""
        of_step = dict(state_dict)
        self.meter.sums.copy_(of_step.pop("meter"))
        self.fired.copy_(of_step.pop("fired"))
        self.step.load_state_dict(of_step)

    def train(self, number: int, batch: Prepared) -> None:
        """Take step number `number`, counted from 0."""
        config, step = self.config, self.step
        step.lr = lr_at(config, number)
        step.now = Current(k_at(config, number), pressure_at(config, number))
        try:
            result = self._steps(batch.x, batch.target, settled=k_settled(config, number))
        except ValueError as error:
            raise ValueError(
                f"the training of {self.label} stopped at step {number}, on {batch.where}: {error}"
            ) from error
        # On a GPU the host does not wait for the loss: the next report detects divergence.
        if result.loss.device.type == "cpu" and not bool(result.loss.isfinite()):
            raise ValueError(self.diverged(number, f"on {batch.where}"))
        self.path = "captured" if self._steps.replaying else result.path
        # Statistics are summed on the device before the next replay overwrites the result.
        self.meter.add(result, batch.variance, len(batch.x))
        if number >= self.config.steps - self._tail:
            self.fired += result.fired

    def report(self, number: int, scales: Scales) -> dict[str, float | int | str]:
        """Return the metrics of the steps since the last report, up to and including `number`."""
        means = self.meter.report()
        if not math.isfinite(means["loss"]):
            raise ValueError(self.diverged(number, "or a little earlier"))
        width = self.step.sae.d_out
        means["mse"] = means.pop("squared_error") / (width * scales.target**2)
        limit = (self.config.auxk or AuxK()).idle_limit(self.config.tokens)
        means["dead_share"] = float((self.step.idle >= limit).double().mean())
        return {
            **means,
            "lr": lr_at(self.config, number),
            "k": self.step.now.k,
            "seed": self.seed,
            "path": self.path,
        }

    def diverged(self, number: int, where: str) -> str:
        """Return the error message for a loss that is not finite."""
        return (
            f"the training of {self.label} diverged: its loss is NaN or infinite at step {number}, "
            f"{where}; a lower lr may help"
        )

    def whole_sae(self) -> SAE:
        """Return the SAE, gathered from all ranks if this one has a share of it."""
        share = self.step.share
        return self.step.sae if share is None else gathered(self.step.sae, share)

    @property
    def firing_rate(self) -> Tensor:
        """[m] float64, share of the rows of the run's last tenth on which each latent fired."""
        return self.fired.double() / (self._tail * self.config.batch_size)


def lr_at(config: TrainConfig, step: int) -> float:
    """Return the learning rate of step number `step`, counted from 0."""
    return config.largest_lr * min(_warmup(config, step), _decay(config, step))


def k_at(config: TrainConfig, step: int) -> int:
    """Return the number of active latents per token at step number `step`."""
    if config.k_start is None or k_settled(config, step):
        return config.k
    annealed = config.k_anneal * config.steps
    return round(config.k_start + (config.k - config.k_start) * step / annealed)


def k_settled(config: TrainConfig, step: int) -> bool:
    """Return whether the number of active latents is constant from step number `step` on."""
    return config.k_start is None or step >= config.k_anneal * config.steps


def pressure_at(config: TrainConfig, step: int) -> float:
    """Return the share of the sparsity penalty applied at step number `step`, from 0 to 1."""
    length = math.ceil(config.sparsity_warmup * config.steps)
    return min(1.0, (step + 1) / length) if length else 1.0


def _warmup(config: TrainConfig, step: int) -> float:
    length = math.ceil(config.lr_warmup * config.steps)
    return min(1.0, (step + 1) / length) if length else 1.0


def _decay(config: TrainConfig, step: int) -> float:
    length = math.ceil(config.lr_decay_share * config.steps)
    if config.lr_decay == "none" or not length:
        return 1.0
    left = min(1.0, (config.steps - step) / length)
    return left if config.lr_decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
