"""One SAE in training: its step, its schedules, and what it reports."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.sae import SAE
from saefast.train.auxk import AuxK
from saefast.train.config import TrainConfig
from saefast.train.initial import Scales
from saefast.train.metrics import Meter
from saefast.train.objectives import Current
from saefast.train.recorded_steps import Graphs, RecordedSteps
from saefast.train.schedules import k_at, k_settled, lr_at, pressure_at
from saefast.train.step import FusedStep


class Prepared(NamedTuple):
    """A batch as all SAEs see it."""

    x: Tensor
    target: Tensor | None
    variance: Tensor
    where: str


class Trainee:
    """One SAE in training."""

    def __init__(
        self, config: TrainConfig, seed: int, sae: SAE, device: torch.device, graphs: Graphs
    ) -> None:
        self.config, self.label, self.seed = config, config.label(seed), seed
        sae = sae.to(device)
        self.path = ""
        self.step = FusedStep(
            sae,
            rules=config.rules,
            objective=config.objective(sae),
            precision=config.precision,
            auxk=config.auxk,
        )
        self._steps = RecordedSteps(self.step, graphs)
        self.meter = Meter(device)
        # On how many rows of the last tenth of the run each latent fired.
        self.fired = torch.zeros(config.latents, dtype=torch.int64, device=device)
        self._tail = max(1, config.steps // 10)

    @property
    def state(self) -> dict[str, Tensor]:
        """What a resume needs besides the weights; the tensors themselves."""
        return {**self.step.state, "meter": self.meter.sums, "fired": self.fired}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a state that was kept."""
        self.meter.sums.copy_(state.pop("meter"))
        self.fired.copy_(state.pop("fired"))
        self.step.restore(state)

    def train(self, number: int, batch: Prepared) -> None:
        """Take step number `number`."""
        config, step = self.config, self.step
        step.lr = lr_at(config, number)
        step.now = Current(k_at(config, number), pressure_at(config, number))
        try:
            result = self._steps(batch.x, batch.target, settled=k_settled(config, number))
        except ValueError as error:
            raise ValueError(
                f"the training of {self.label} stopped at step {number}, on {batch.where}: {error}"
            ) from error
        # On a GPU the host does not wait for the loss: there the next report finds it.
        if result.loss.device.type == "cpu" and not bool(result.loss.isfinite()):
            raise ValueError(self.diverged(number, f"on {batch.where}"))
        self.path = "captured" if self._steps.replaying else result.path
        # What is kept of the result is summed on the device, before the next replay overwrites it.
        self.meter.add(result, batch.variance, len(batch.x))
        if number >= self.config.steps - self._tail:
            self.fired += result.fired

    def report(self, number: int, scales: Scales) -> dict[str, float | int | str]:
        """What the steps up to and with `number` were like."""
        means = self.meter.report()
        if not math.isfinite(means["loss"]):
            raise ValueError(self.diverged(number, "or a little earlier"))
        width = self.step.sae.W_dec.shape[1]
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
        """What is told of a loss that is no number."""
        return (
            f"the training of {self.label} diverged: its loss is NaN or infinite at step {number}, "
            f"{where}; a lower lr may help"
        )

    @property
    def firing_rate(self) -> Tensor:
        """[m] float64: on which share of the last tenth's rows each latent fired."""
        return self.fired.double() / (self._tail * self.config.batch_size)
