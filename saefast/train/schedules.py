"""How learning rate and number of active latents change over a run, from the step alone."""

import math

from saefast.train.config import TrainConfig


def lr_at(config: TrainConfig, step: int) -> float:
    """The learning rate of step number `step`, counted from 0."""
    return config.largest_lr * min(_warmup(config, step), _decay(config, step))


def k_at(config: TrainConfig, step: int) -> int:
    """The number of active latents at that step."""
    if config.k_start is None or k_settled(config, step):
        return config.k
    annealed = config.k_anneal * config.steps
    return round(config.k_start + (config.k - config.k_start) * step / annealed)


def k_settled(config: TrainConfig, step: int) -> bool:
    """Tell whether the number of active latents stays the same from that step on."""
    return config.k_start is None or step >= config.k_anneal * config.steps


def pressure_at(config: TrainConfig, step: int) -> float:
    """The part of the sparsity penalty that is applied at that step."""
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
